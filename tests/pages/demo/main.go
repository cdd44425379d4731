// Demo writes the state directory of a filter that has run for four weeks. The records contain
// legitimate mail and attacks from tests/month. Demo also writes a configuration and a database of
// networks. The screenshot in README.md shows these data.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"scanwatch/filter/memory"
	"scanwatch/store"
	"scanwatch/tests/month"
	"scanwatch/tests/simulate"
)

func main() {
	dir := flag.String("dir", "", "new directory for the files")
	mode := flag.String("mode", "enforce", "of the policy standard: observe or enforce")
	picture := flag.String("shrink", "", "PNG file to write with 256 colours to standard output, instead of the directory")
	flag.Parse()
	if *picture != "" {
		if err := shrink(*picture); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*dir, *mode, time.Now().UTC().Truncate(time.Minute)); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(dir, mode string, now time.Time) error {
	state, err := filepath.Abs(filepath.Join(dir, "state"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(state, 0o755); err != nil {
		return err
	}
	text, err := simulate.PresetText("standard")
	if err != nil {
		return err
	}
	text = strings.Replace(text, "\nmode observe\n", "\nmode "+mode+"\n", 1)
	text = fmt.Sprintf("store %q keep 90d budget 512M\nown-name \"mx.example.org\"\nasn %q\ncountry %q\n%s", state, "networks.mmdb", "networks.mmdb", text)
	database, err := networks()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"scanwatch.conf": []byte(text), "networks.mmdb": database} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return play(state, mode, now)
}

// play plays the month until now. The last days are the busiest.
func play(state, mode string, now time.Time) error {
	month.Start = now.Truncate(24*time.Hour).AddDate(0, 0, 1-month.Days)
	preset := "standard"
	if mode == "observe" {
		preset = "standard observe"
	}
	w, err := month.New(preset, 1)
	if err != nil {
		return err
	}
	records := store.Open(state, store.Options{Now: func() time.Time { return now }, Program: "demo"})
	w.Sink = records.Add
	m := w.Memory()
	file := store.OpenState(state, store.StateOptions{Buckets: memory.Buckets(), Program: "demo", Changes: m.Changes, Rewrite: m.Rewrite})
	if err := w.PlayUntil(now); err != nil {
		return err
	}
	return errors.Join(records.Flush(context.Background()), records.Close(), file.Flush(context.Background()), file.Close())
}

// owners lists invented owners of the networks in the month. The third byte of an address
// determines the owner.
var owners = []struct {
	first, last int
	as          uint32
	name        string
	country     string
}{
	{0, 20, 64496, "Northwind Broadband", "DE"}, {21, 40, 64497, "Example Mail Services", "IE"}, {41, 60, 64498, "Lakeside Hosting", "NL"},
	{61, 90, 64499, "University Network", "FR"}, {91, 127, 64500, "Blue Harbour Telecom", "GB"}, {128, 150, 64501, "Orchard Cloud", "US"},
	{151, 175, 64502, "Fast VPS", "SG"}, {176, 200, 64503, "Pine Valley Cable", "BR"}, {201, 225, 64504, "Metro Mobile", "IN"}, {226, 255, 64505, "Harbour Colocation", "PL"},
}

// networks returns a database of the networks' owners.
func networks() ([]byte, error) {
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Demo", IncludeReservedNetworks: true})
	if err != nil {
		return nil, err
	}
	for _, o := range owners {
		for third := o.first; third <= o.last; third++ {
			for _, second := range []byte{18, 19} {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, second, byte(third), 0}), 24)
				err := tree.Insert(&net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}, mmdbtype.Map{
					"autonomous_system_number":       mmdbtype.Uint32(o.as),
					"autonomous_system_organization": mmdbtype.String(o.name),
					"country":                        mmdbtype.Map{"iso_code": mmdbtype.String(o.country)},
				})
				if err != nil {
					return nil, err
				}
			}
		}
	}
	var b strings.Builder
	_, err = tree.WriteTo(&b)
	return []byte(b.String()), err
}

// shrink reduces a PNG file to its 256 most frequent colours, and writes it to standard output.
func shrink(name string) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	picture, err := png.Decode(in)
	if err != nil {
		return err
	}
	bounds := picture.Bounds()
	count := map[color.RGBA]int{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[color.RGBAModel.Convert(picture.At(x, y)).(color.RGBA)]++
		}
	}
	colours := slices.SortedFunc(maps.Keys(count), func(a, b color.RGBA) int {
		return cmp.Or(count[b]-count[a], int(a.R)-int(b.R), int(a.G)-int(b.G), int(a.B)-int(b.B))
	})
	var palette color.Palette
	for _, c := range colours[:min(len(colours), 256)] {
		palette = append(palette, c)
	}
	small := image.NewPaletted(bounds, palette)
	draw.Draw(small, bounds, picture, bounds.Min, draw.Src)
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	return encoder.Encode(os.Stdout, small)
}
