package live

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/rivo/tview"
	"golang.org/x/term"

	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/safego"
	"scanwatch/internal/text"
)

// FullScreen reports whether w is a terminal that a Console can use.
func FullScreen(w io.Writer) bool {
	f, ok := w.(*os.File)
	name := os.Getenv("TERM")
	return ok && term.IsTerminal(int(f.Fd())) && name != "" && name != "dumb"
}

// refresh is the interval at which the screen is redrawn.
const refresh = time.Second

// A Console displays a View on a terminal. Except for Run, methods may be called only from app's
// event loop.
type Console struct {
	view   *View
	run    func(args ...string) string
	colour bool
	width  int // terminal width

	app    *tview.Application
	pages  *tview.Pages // "main", with "text" above it
	main   *tview.Flex
	head   *tview.TextView
	table  *tview.Table
	below  *tview.TextView // latest events, on high terminals
	foot   *tview.TextView
	filter *tview.InputField
	text   *tview.TextView // explanation, or list of keys
	title  *tview.TextView // title of text

	content  grid
	section  int
	order    int
	paused   bool
	selected key    // the zero key selects the first row
	message  string // result of a command, shown until the next key
	question string // shown until y or any other key is pressed
	command  []string
	asked    int // counts requested explanations, so that an outdated one is dropped
}

// NewConsole returns a Console. run runs a scanwatch command and returns its output.
func NewConsole(view *View, run func(args ...string) string) *Console {
	tview.Styles = tview.Theme{} // use the terminal's own colours
	c := &Console{view: view, run: run, app: tview.NewApplication(), pages: tview.NewPages(), main: tview.NewFlex().SetDirection(tview.FlexRow),
		head: tview.NewTextView(), table: tview.NewTable(), below: tview.NewTextView(), foot: tview.NewTextView(), filter: tview.NewInputField(),
		text: tview.NewTextView(), title: tview.NewTextView()}
	for _, t := range []*tview.TextView{c.head, c.below, c.foot, c.title} {
		t.SetDynamicColors(true).SetWrap(false)
	}
	c.content.style = c.style
	c.table.SetContent(&c.content).SetFixed(1, 0).SetSelectable(true, false).SetSelectedStyle(tcell.StyleDefault.Reverse(true))
	c.table.SetSelectionChangedFunc(func(row, _ int) { c.choose(row) })
	c.filter.SetLabel("filter: ").SetLabelStyle(tcell.StyleDefault.Bold(true)).SetFieldStyle(tcell.StyleDefault)
	c.filter.SetChangedFunc(func(string) { c.update(true) })
	c.main.AddItem(c.head, 0, 0, false).AddItem(c.table, 0, 1, true).AddItem(c.below, 0, 0, false).AddItem(c.filter, 0, 0, false).AddItem(c.foot, 0, 0, false)
	c.pages.AddPage("main", c.main, true, true)
	c.pages.AddPage("text", tview.NewFlex().SetDirection(tview.FlexRow).AddItem(c.title, 1, 0, false).AddItem(c.text, 0, 1, true), true, false)
	c.app.SetInputCapture(c.key).SetBeforeDrawFunc(c.layout).SetRoot(c.pages, true)
	return c
}

// Run displays the View until the user quits or ctx is done.
func (c *Console) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, c.app.Stop)()
	go func() {
		tick := time.NewTicker(refresh)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				c.app.QueueUpdateDraw(func() { c.update(false) })
			}
		}
	}()
	if err := c.app.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("use terminal (TERM=%s): %w; TERM=dumb selects plain text", os.Getenv("TERM"), err)
	}
	return nil
}

// update reads new rows from the View, keeping the selection. A paused console is updated
// only if always is set.
func (c *Console) update(always bool) {
	if !c.paused || always {
		c.content.table = c.view.table(c.section, c.order, c.width, c.filter.GetText())
		c.content.widths = c.content.table.widths(c.width)
	}
	at := 0
	for i, r := range c.content.rows {
		if r.key == c.selected {
			at = i
		}
	}
	offset, _ := c.table.GetOffset()
	c.table.SetOffset(offset, 0) // otherwise, a table that grows would remain scrolled to its end
	c.table.Select(at+1, 0)
}

// choose stores the selected row. If the first row is selected, the first row remains selected even
// if an update moves another source there.
func (c *Console) choose(row int) {
	c.selected = key{}
	if row > 1 && row <= len(c.content.rows) {
		c.selected = c.content.rows[row-1].key
	}
}

// current returns the selected row, or nil if it is not a source.
func (c *Console) current() *row {
	at, _ := c.table.GetSelection()
	if at < 1 || at > len(c.content.rows) || !c.content.rows[at-1].key.prefix.IsValid() {
		return nil
	}
	return &c.content.rows[at-1]
}

// key handles a key, and returns an event for the focused widget, or nil.
func (c *Console) key(event *tcell.EventKey) *tcell.EventKey {
	switch event.Key() {
	case tcell.KeyCtrlC:
		return event
	case tcell.KeyCtrlL:
		go c.app.Sync()
		return nil
	case tcell.KeyCtrlZ: // job control does not work in raw mode
		c.app.Suspend(stopJob)
		return nil
	}
	c.message = ""
	switch name, _ := c.pages.GetFrontPage(); {
	case name == "text":
		return c.textKey(event)
	case c.filter.HasFocus():
		return c.filterKey(event)
	case c.question != "":
		c.question = ""
		if r := event.Rune(); r == 'y' || r == 'Y' {
			c.execute()
		}
		return nil
	}
	return c.mainKey(event)
}

func (c *Console) textKey(event *tcell.EventKey) *tcell.EventKey {
	if event.Key() == tcell.KeyEscape || event.Key() == tcell.KeyEnter || event.Rune() == 'q' {
		c.asked++
		c.pages.HidePage("text")
		c.app.SetFocus(c.table)
		return nil
	}
	return event
}

func (c *Console) filterKey(event *tcell.EventKey) *tcell.EventKey {
	switch event.Key() {
	case tcell.KeyEscape:
		c.filter.SetText("")
	case tcell.KeyEnter, tcell.KeyUp, tcell.KeyDown, tcell.KeyTab:
	default:
		return event
	}
	c.app.SetFocus(c.table)
	return nil
}

func (c *Console) mainKey(event *tcell.EventKey) *tcell.EventKey {
	switch event.Key() {
	case tcell.KeyTab, tcell.KeyRight:
		c.show((c.section + 1) % len(sections))
	case tcell.KeyBacktab, tcell.KeyLeft:
		c.show((c.section + len(sections) - 1) % len(sections))
	case tcell.KeyEscape:
		c.filter.SetText("")
	case tcell.KeyEnter:
		c.explain()
	case tcell.KeyRune:
		return c.letter(event)
	default:
		return event // a movement key
	}
	return nil
}

// letter handles a letter key pressed in the table.
func (c *Console) letter(event *tcell.EventKey) *tcell.EventKey {
	switch r := event.Rune(); r {
	case 'j', 'k', 'g', 'G':
		return event
	case '1', '2', '3', '4', '5':
		c.show(int(r - '1'))
	case 'q':
		c.app.Stop()
	case '?':
		c.open("keys of scanwatch top", help)
	case '/':
		c.app.SetFocus(c.filter)
	case 's':
		c.order = (c.order + 1) % len(orders)
		c.update(true)
	case 'p':
		c.paused = !c.paused
		c.update(false)
	case 'b':
		c.ask("Ban", " for a day", "ban")
	case 'u':
		if r := c.current(); r != nil && !c.view.banned(r.key.prefix) {
			c.message = prefix.String(r.key.prefix) + " is not banned"
			return nil
		}
		c.ask("Revoke the ban of", "", "unban")
	}
	return nil
}

// show switches to a section.
func (c *Console) show(section int) {
	c.section, c.selected = section, key{}
	c.update(true)
}

// ask asks the user to confirm a command on the selected source.
func (c *Console) ask(do, how, command string) {
	r := c.current()
	if r == nil {
		c.message = "no source is selected"
		return
	}
	p := r.key.prefix
	if command == "ban" && p.IsSingleIP() {
		p = memory.Source(p.Addr()) // the ban command extends an IPv6 address to its /64
	}
	source := prefix.String(p)
	if name := c.view.name(r.key); name != "" {
		how = " (" + name + ")" + how
	}
	c.question, c.command = do+" "+source+how+"? y/n", []string{command, source}
}

// execute runs the confirmed command.
func (c *Console) execute() {
	command := strings.Join(c.command, " ")
	c.message = command + " ..."
	c.start(c.command, func(out string) {
		if strings.Contains(out, "use --force") {
			out += ": scanwatch " + strings.Replace(command, " ", " --force ", 1)
		}
		c.message = strings.ReplaceAll(out, "\n", "; ")
	})
}

// explain shows why the filter decided as it did on the selected source.
func (c *Console) explain() {
	r := c.current()
	if r == nil {
		return
	}
	source := prefix.String(r.key.prefix)
	c.open("why "+source, "reading the records ...")
	asked := c.asked
	c.start([]string{"why", source}, func(out string) {
		if c.asked == asked {
			c.text.SetText(out)
		}
	})
}

// start runs a command. When the command ends, the event loop calls done with the output.
func (c *Console) start(command []string, done func(out string)) {
	go func() {
		var out string
		if err := safego.Run(func() error { out = c.run(command...); return nil }); err != nil {
			out = text.Escape(err.Error())
		}
		c.app.QueueUpdateDraw(func() { done(strings.TrimSpace(out)) })
	}()
}

// open shows text above the table. The text may be hostile.
func (c *Console) open(title, content string) {
	c.asked++
	c.title.SetText(c.marked([][]cell{{{title, lookStrong}, {"   j k PgUp PgDn scroll, q back", lookFaint}}}))
	c.text.SetText(content).ScrollToBeginning()
	c.pages.ShowPage("text")
	c.app.SetFocus(c.text)
}

const help = `
  1-5, Tab       sources, rejections, events, bans, networks
  arrows, j k    select a row; PgUp PgDn Home End g G
  Enter          explain the decisions about the selected source
  b, u           ban the selected source for a day, or revoke its ban
  /              show only rows with a text, or of a network: 192.0.2.0/24
  Esc            show all rows
  s              sort by last, evidence, findings, rejections, sessions, address
  p              pause, and continue
  Ctrl-L         draw the screen again
  q, Ctrl-C      quit

  NAME      reverse DNS; a question mark precedes a name without FCrDNS
  STANDING  banned; trusted or known, by accepted mail; - is none
  SESS      sessions since the time in the first line; MAIL accepted messages
  FIND      findings; REJ rejections, in parentheses if only observed
  RATE/h    sessions of the last hour: each level is twice the previous one
  EVIDENCE  high confidence first

  Events appear immediately, sessions without a finding or rejection within two
  minutes.
`

// layout sets the text and size of each widget before the screen is drawn.
func (c *Console) layout(screen tcell.Screen) bool {
	width, height := screen.Size()
	if c.width != width {
		c.width = width
		c.colour = screen.Colors() > 0 // false with NO_COLOR; without colours, tcell would approximate them
		for i, r := range levels {
			screen.RegisterRuneFallback(r, " .,:-=+*#"[i:i+1])
		}
		screen.RegisterRuneFallback('…', ".")
		c.update(true)
	}
	lines := c.view.head(width)
	lines = append(lines[:min(len(lines), max(height/3, 1))], c.tabs())
	c.head.SetText(c.marked(lines))
	foot := cell{"? help  Enter why  b ban  u unban  / filter  s sort  p pause  q quit", lookFaint}
	switch {
	case c.question != "":
		foot = cell{text.Fold(c.question, max(width, 10), 0), lookReverse}
	case c.message != "":
		foot = cell{text.Fold(c.message, max(width, 10), 0), lookStrong}
	}
	c.foot.SetText(c.marked([][]cell{{foot}}))
	c.main.ResizeItem(c.head, len(lines), 0).ResizeItem(c.foot, min(1+strings.Count(foot.text, "\n"), max(height/3, 1)), 0)
	typing, below := 0, 0
	if c.filter.HasFocus() {
		typing = 1
	}
	if height >= 32 && c.section != 1 && c.section != 2 {
		below = height / 4
		c.below.SetText(c.marked(c.events(width, below)))
	}
	c.main.ResizeItem(c.filter, typing, 0).ResizeItem(c.below, below, 0)
	return false
}

// tabs returns the line that lists the sections.
func (c *Console) tabs() (line []cell) {
	for i, s := range sections {
		look := lookFaint
		if i == c.section {
			look = lookReverse
		}
		line = append(line, cell{fmt.Sprintf(" %d %s ", i+1, s.title), look})
	}
	state := fmt.Sprintf("  %d", c.content.total)
	if f := c.filter.GetText(); f != "" {
		state = fmt.Sprintf("  /%s %d of %d", text.Escape(f), len(c.content.rows), c.content.total)
	}
	if c.section == 0 || c.section == 4 {
		state += ", by " + orders[c.order].name
	}
	line = append(line, cell{text: state})
	if c.paused {
		line = append(line, cell{"  PAUSED", lookWarning})
	}
	return line
}

// events returns a heading and the latest events from the selected source, or from all
// sources.
func (c *Console) events(width, rows int) (lines [][]cell) {
	filter, title := "", "latest events"
	if r := c.current(); r != nil && c.selected != (key{}) {
		filter = r.key.prefix.String()
		title = "latest events of " + prefix.String(r.key.prefix)
	}
	t := c.view.table(2, 0, width, filter)
	if len(t.rows) == 0 {
		title = "no " + strings.TrimPrefix(title, "latest ")
	}
	lines = append(lines, nil, []cell{{title, lookStrong}})
	widths := t.widths(width)
	for _, r := range t.rows[:min(len(t.rows), max(rows-2, 0))] {
		var line []cell
		for i := range t.columns {
			line = append(line, cell{t.columns[i].fit(r.cells[i].text, widths[i]) + " ", r.cells[i].look})
		}
		lines = append(lines, line)
	}
	return lines
}

// A grid is the table on the screen.
type grid struct {
	tview.TableContentReadOnly
	table
	widths []int
	style  func(look) tcell.Style
}

// GetRowCount implements tview.TableContent.
func (g *grid) GetRowCount() int { return 1 + len(g.rows) }

// GetColumnCount implements tview.TableContent.
func (g *grid) GetColumnCount() int { return len(g.columns) }

// GetCell implements tview.TableContent.
func (g *grid) GetCell(y, x int) *tview.TableCell {
	content := cell{g.columns[x].title, lookHeading}
	if y > 0 {
		content = g.rows[y-1].cells[x]
	}
	return tview.NewTableCell(tview.Escape(g.columns[x].fit(content.text, g.widths[x]))).SetSelectable(y > 0).SetStyle(g.style(content.look))
}

// style returns the style for a look, using the terminal's own colours.
func (c *Console) style(l look) tcell.Style {
	s := tcell.StyleDefault
	colour := tcell.ColorDefault
	switch l {
	case lookStrong:
		s = s.Bold(true)
	case lookHeading:
		s = s.Bold(true).Underline(true)
	case lookReverse:
		s = s.Reverse(true)
	case lookFaint:
		s = s.Dim(true)
	case lookGood:
		colour = tcell.ColorGreen
	case lookWarning:
		colour = tcell.ColorOlive
	case lookBad:
		s, colour = s.Bold(true), tcell.ColorMaroon
	}
	if c.colour {
		s = s.Foreground(colour)
	}
	return s
}

// marked converts lines to tview markup.
func (c *Console) marked(lines [][]cell) string {
	var b strings.Builder
	for _, line := range lines {
		for _, part := range line {
			colour, _, attributes := c.style(part.look).Decompose()
			b.WriteString("[" + cmp.Or(colour.Name(), "-") + ":-:")
			for mask, flag := range map[tcell.AttrMask]string{tcell.AttrBold: "b", tcell.AttrDim: "d", tcell.AttrReverse: "r"} {
				if attributes&mask != 0 {
					b.WriteString(flag)
				}
			}
			b.WriteString("]" + tview.Escape(part.text) + "[-:-:-]")
		}
		b.WriteByte('\n')
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// stopJob stops the process group, and returns when the group is continued. If there is no shell
// that could continue the group, the kernel ignores the signal.
func stopJob() {
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	defer signal.Stop(continued)
	if syscall.Kill(0, syscall.SIGTSTP) != nil {
		return
	}
	select { // the process stops here, shortly after the call to kill
	case <-continued:
	case <-time.After(time.Second):
	}
}
