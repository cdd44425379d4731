//go:build linux && others

package milter

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
)

// A contestant is a program that protects a site's Postfix.
type contestant struct {
	name string
	// begin starts the contestant and Postfix.
	begin func(*site)
	// bans returns the banned addresses. The test does not connect from these addresses, so that a
	// ban works as in a firewall.
	bans    func(*site) map[string]bool
	process string // of the contestant
}

const pregreet = "postscreen_greet_action = enforce\npostscreen_cache_map = btree:$data_directory/postscreen_cache\n"

var contestants = []contestant{
	{"Postfix alone", func(s *site) { s.mailServer("") }, nil, ""},
	{"postscreen", func(s *site) { s.screened = true; s.mailServer(pregreet) }, nil, "postscreen"},
	{"postscreen, deep tests", func(s *site) {
		s.screened = true
		s.mailServer(pregreet + "postscreen_pipelining_enable = yes\npostscreen_pipelining_action = enforce\n" +
			"postscreen_non_smtp_command_enable = yes\npostscreen_non_smtp_command_action = enforce\npostscreen_bare_newline_enable = yes\npostscreen_bare_newline_action = enforce\n")
	}, nil, "postscreen"},
	{"fail2ban", func(s *site) { s.mailServer(""); startFail2ban(s) }, fail2banBans, "fail2ban-server"},
	{"CrowdSec", func(s *site) { s.mailServer(""); startCrowdSec(s) }, crowdsecBans, "crowdsec"},
	{"Rspamd", func(s *site) {
		startRspamd(s)
		s.mailServer("smtpd_milters = inet:127.0.0.1:11332\nmilter_default_action = accept\n")
	}, nil, "rspamd"},
	{"standard, milter", func(s *site) { s.startMilter(conf(s.t, "standard", "enforce")); s.mailServer(s.recipe("Postfix")) }, nil, "milter-scanwatc"},
	{"tight, milter", func(s *site) { s.startMilter(conf(s.t, "tight", "enforce")); s.mailServer(s.recipe("Postfix")) }, nil, "milter-scanwatc"},
	{"scanwatch follow", func(s *site) { s.mailServer(""); startFollowing(s) }, followBans, "scanwatch"},
}

// mailServer starts Postfix with its default limits, and with logins on port 587.
func (s *site) mailServer(extra string) {
	s.authenticate(s.path("auth"))
	s.services = fmt.Sprintf("192.0.2.25:587 inet n - n - - smtpd -o syslog_name=postfix/submission -o smtpd_sasl_auth_enable=yes -o smtpd_sasl_type=dovecot -o smtpd_sasl_path=%s\n", s.path("auth"))
	s.t.Cleanup(func() { // after Postfix has ended, because the next Postfix uses the same port
		filterproc.Eventually(s.t, "a free port", func() bool {
			c, err := net.Dial("tcp", server)
			if err == nil {
				c.Close()
			}
			return err != nil
		})
	})
	s.startPostfix("smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination\n" +
		"smtpd_error_sleep_time = 1s\nsmtpd_client_connection_count_limit = 50\n" + extra)
	filterproc.Eventually(s.t, "the log", func() bool { _, err := os.Stat(s.path("maillog")); return err == nil })
}

// provoke causes each program that reads the log to ban an address.
func provoke(t *testing.T, src string) {
	t.Helper()
	c, err := dial(src, "587")
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	c.greet("mail.other.example")
	for range 7 {
		c.login("wrong")
	}
	d, err := dial(src, "25")
	if err != nil {
		t.Fatal(err)
	}
	defer d.conn.Close()
	d.greet("mail.other.example")
	d.say("MAIL", mailLine)
	for i := range 7 {
		d.say("RCPT", fmt.Sprintf("RCPT TO:<%s-%d@example.org>", src, i))
	}
	c.say("QUIT", "QUIT")
	d.say("QUIT", "QUIT")
}

// daemon starts a program and returns a function that reads its output.
func daemon(s *site, library bool, name string, args ...string) func() string {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	if library {
		root := filepath.Join(roots(), "consumers")
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+root+"/usr/lib/rspamd:"+root+"/usr/lib/x86_64-linux-gnu:"+root+"/lib/x86_64-linux-gnu")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log := filterproc.LogFile(s.t, cmd)
	cmd.Stdout = cmd.Stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Log(log())
		}
	})
	return log
}

// startFail2ban starts fail2ban with the jails from its package, which write banned addresses to
// a file.
func startFail2ban(s *site) {
	s.t.Helper()
	program := require.Program(s.t, "fail2ban-server")
	conf := s.path("fail2ban")
	if out, err := exec.Command("sh", "-c", "cp -r /etc/fail2ban $0 && rm -f $0/jail.d/*", conf).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	s.write("fail2ban/fail2ban.local", fmt.Sprintf("[DEFAULT]\nlogtarget = %[1]s/fail2ban.log\nsocket = %[1]s/fail2ban.sock\npidfile = %[1]s/fail2ban.pid\ndbfile = :memory:\n", s.dir))
	s.write("fail2ban/action.d/list.conf", fmt.Sprintf("[Definition]\nactionban = echo \"<name> <ip>\" >>%s\n", s.path("banned")))
	s.write("fail2ban/jail.local", fmt.Sprintf("[DEFAULT]\nbanaction = list\nlogpath = %[1]s\n[postfix]\nenabled = true\nlogpath = %[1]s\n[postfix-sasl]\nenabled = true\nlogpath = %[1]s\n", s.path("maillog")))
	daemon(s, false, program, "-f", "-c", conf, "-s", s.path("fail2ban.sock"), "-p", s.path("fail2ban.pid"), "start")
	filterproc.Eventually(s.t, "fail2ban", func() bool {
		log, _ := os.ReadFile(s.path("fail2ban.log"))
		return strings.Contains(string(log), "Jail 'postfix' started") && strings.Contains(string(log), "Jail 'postfix-sasl' started")
	})
}

// fail2banBans returns the addresses that either jail has banned. It includes a sentinel only after
// both jails have banned it.
func fail2banBans(s *site) map[string]bool {
	text, _ := os.ReadFile(s.path("banned"))
	bans, count := map[string]bool{}, map[string]int{}
	for line := range strings.Lines(string(text)) {
		_, a, _ := strings.Cut(strings.TrimSpace(line), " ")
		count[a]++
		bans[a] = !strings.HasPrefix(a, "198.18.") || count[a] == 2
	}
	return bans
}

const crowdsecSetup = `cd $0
cat >config.yaml <<END
common: {daemonize: false, log_media: stdout, log_level: info, working_dir: .}
config_paths: {config_dir: $0, data_dir: $0/data, simulation_path: $0/simulation.yaml, hub_dir: $0/hub, index_path: $0/hub/.index.json, notification_dir: $0/notify, plugin_dir: $0/plugins}
crowdsec_service: {acquisition_path: $0/acquis.yaml, parser_routines: 1}
cscli: {output: human}
db_config: {log_level: info, type: sqlite, db_path: $0/data/crowdsec.db, flush: {max_items: 5000, max_age: 7d}}
api:
  client: {insecure_skip_verify: false, credentials_path: $0/local.yaml}
  server: {log_level: info, listen_uri: "127.0.0.1:8080", profiles_path: $0/profiles.yaml}
prometheus: {enabled: false}
END
echo 'simulation: off' >simulation.yaml
printf 'name: default\nfilters:\n - Alert.Remediation == true\ndecisions:\n - type: ban\n   duration: 4h\non_success: break\n' >profiles.yaml
echo 'url: http://127.0.0.1:8080' >local.yaml
printf 'filenames: ["%s"]\nlabels: {type: syslog}\n' $2 >acquis.yaml
hub=$1/usr/share/crowdsec/hub
mkdir -p hub data notify parsers/s00-raw parsers/s01-parse parsers/s02-enrich scenarios postoverflows
echo '{"parsers":{},"scenarios":{},"collections":{},"postoverflows":{}}' >hub/.index.json
cp -r $1/etc/crowdsec/patterns .
cp $hub/parsers/s00-raw/crowdsecurity/syslog-logs.yaml parsers/s00-raw/
cp $hub/parsers/s01-parse/crowdsecurity/postfix-logs.yaml $hub/parsers/s01-parse/crowdsecurity/postscreen-logs.yaml parsers/s01-parse/
cp $hub/parsers/s02-enrich/crowdsecurity/dateparse-enrich.yaml $hub/parsers/s02-enrich/crowdsecurity/whitelists.yaml parsers/s02-enrich/
cp $hub/scenarios/crowdsecurity/postfix-spam.yaml scenarios/
$1/usr/bin/cscli -c config.yaml machines add test --password test --force -f $0/local.yaml
$1/usr/bin/cscli -c config.yaml bouncers add test -k ` + bouncerKey

const bouncerKey = "0123456789abcdef0123456789abcdef"

// startCrowdSec starts CrowdSec with the collection for Postfix from its package.
func startCrowdSec(s *site) {
	s.t.Helper()
	root := s.consumers("/usr/bin/crowdsec")
	dir := s.path("crowdsec")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-ec", crowdsecSetup, dir, root, s.path("maillog")).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	log := daemon(s, false, root+"/usr/bin/crowdsec", "-c", dir+"/config.yaml", "-no-capi")
	filterproc.Eventually(s.t, "CrowdSec", func() bool { return strings.Contains(log(), "Starting processing data") })
}

// crowdsecBans requests the bans in the same way as a bouncer.
func crowdsecBans(s *site) map[string]bool {
	req, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:8080/v1/decisions/stream?startup=true", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", bouncerKey)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var all struct{ New []struct{ Value string } }
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		s.t.Fatal(err)
	}
	bans := map[string]bool{}
	for _, d := range all.New {
		bans[d.Value] = true
	}
	return bans
}

// startRspamd starts Rspamd with the configuration from its package.
func startRspamd(s *site) {
	s.t.Helper()
	root := s.consumers("/usr/bin/rspamd")
	dir, share := s.path("rspamd"), root+"/usr/share/rspamd"
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chown(dir, 1, 1); err != nil {
		s.t.Fatal(err)
	}
	args := []string{"-f", "-u", "daemon", "-g", "daemon", "-c", root + "/etc/rspamd/rspamd.conf"}
	for name, value := range map[string]string{"LUALIBDIR": share + "/lualib", "SHAREDIR": share, "RULESDIR": share + "/rules", "PLUGINSDIR": share + "/plugins", "WWWDIR": share + "/www",
		"DBDIR": dir, "RUNDIR": dir, "LOGDIR": dir, "CONFDIR": root + "/etc/rspamd", "LOCAL_CONFDIR": root + "/etc/rspamd"} {
		args = append(args, "--var="+name+"="+value)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			log, _ := os.ReadFile(dir + "/rspamd.log")
			s.t.Logf("%s", log)
		}
	})
	daemon(s, true, root+"/usr/bin/rspamd", args...)
	filterproc.Eventually(s.t, "Rspamd", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:11332")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// startFollowing starts scanwatch follow with the standard preset and the rules that the manual
// adds to it.
func startFollowing(s *site) {
	page, err := os.ReadFile("../../man/scanwatch-servers.7")
	if err != nil {
		s.t.Fatal(err)
	}
	added := regexp.MustCompile(`(?ms)^rule scanner-end .*?^\.Ed$`).FindString(string(page))
	if added == "" {
		s.t.Fatal("the manual has no rules")
	}
	policy := conf(s.t, "standard", "enforce") + "log verbose\n" // logs the start
	for rule := range strings.SplitSeq(strings.TrimSuffix(added, "\n.Ed"), "\nrule ") {
		rule = strings.TrimPrefix(rule, "rule ")
		if name, _, _ := strings.Cut(rule, " "); !strings.Contains(policy, "\nrule "+name+" ") {
			policy += "rule " + strings.ReplaceAll(rule, `\e`, `\`) + "\n"
		}
	}
	s.write("preset.conf", policy)
	if err := os.Mkdir(s.path("followed"), 0o750); err != nil {
		s.t.Fatal(err)
	}
	s.follow("preset.conf", "postfix", "maillog")
}

func followBans(s *site) map[string]bool {
	bans := map[string]bool{}
	for line := range strings.Lines(cli.Run(s.t, s.path("followed"), "bans")) {
		if a, _, _ := strings.Cut(line, " "); a != "" {
			bans[a] = true
		}
	}
	return bans
}

// marked returns, for each client, the number of messages in the queue that a content filter has
// marked as spam.
func marked(s *site) map[string]int {
	from, n := regexp.MustCompile(`Received: from [^\n]*\[([0-9.]+)\]`), map[string]int{}
	_ = filepath.WalkDir(s.path("queue"), func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.Type().IsRegular() {
			text, _ := os.ReadFile(path)
			if client := from.FindSubmatch(text); client != nil && strings.Contains(string(text), "X-Spam: Yes") {
				n[string(client[1])]++
			}
		}
		return nil
	})
	return n
}

// cpuSeconds returns the CPU time of the processes in the test's namespace that have the given
// name.
func cpuSeconds(name string) float64 {
	own, _ := os.Readlink("/proc/self/ns/net")
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	ticks := 0
	for _, stat := range all {
		text, _ := os.ReadFile(stat)
		_, rest, _ := strings.Cut(string(text), "(")
		comm, rest, _ := strings.Cut(rest, ") ")
		if ns, _ := os.Readlink(filepath.Join(filepath.Dir(stat), "ns/net")); name == "" || ns != own || !strings.HasPrefix(comm, name) {
			continue
		}
		for i, f := range strings.Fields(rest) {
			if i >= 11 && i <= 14 { // user and system time of the process, and of its children
				n, _ := strconv.Atoi(f)
				ticks += n
			}
		}
	}
	return float64(ticks) / 100
}
