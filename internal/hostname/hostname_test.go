package hostname

import (
	"strings"
	"testing"
)

// TestGeneric checks names derived by providers and names chosen by owners.
func TestGeneric(t *testing.T) {
	generic := `
		static.2.1.46.78.clients.your-server.de STATIC.2.1.46.78.Clients.Your-Server.DE. dedi1234.your-server.de
		vmi123456.contaboserver.net vmi1000037.hoster.example h1832461.stratoserver.net srv123456.hstgr.cloud
		vps-1a2b3c4d.vps.ovh.ca vps-1a2b3c4d.vps.ovh.net ns3012345.ip-51-255-10.eu ns3012345.ovh.net ip20.ip-54-36-10.eu
		s15270293.onlinehome-server.info v2202401234567890.ultrasrv.de v2202401234567890.supersrv.de
		ip-50-62-1-2.ip.secureserver.net astra4139.startdedicated.de static-ip-85-25-92-177.inaddr.ip-pool.com
		p5b0c1d2e.dip0.t-ipconnect.de p5B283A6B.dip0.t-ipconnect.de x4db5a1c2.dyn.telefonica.de ip1f10abcd.dynamic.kabel-deutschland.de
		ec2-3-68-10-20.eu-central-1.compute.amazonaws.com 20.10.141.34.bc.googleusercontent.com 45.76.1.2.vultrusercontent.com
		139-162-1-2.ip.linodeusercontent.com li738-236.members.linode.com 2-1-47-212.instances.scw.cloud tk2-236-27544.vs.sakura.ne.jp
		h-66-166-212-194.LSANCA54.covad.net adsl-157-20-24.msy.bellsouth.net 121-87-205-206f1.shg1.eonet.ne.jp
		user233.64.47.28.dsli.example dsl-5.isp.example 1Cust138.tnt3.dub2.ie.uudial.net lh71.143.2.199.talksite.example`
	for _, name := range strings.Fields(generic) {
		if !Generic([]byte(name)) {
			t.Errorf("%s is not generic", name)
		}
	}
	chosen := `
		mail.example.org MX1.Example.Org mail123456.example.net mta1234567.mail.example.com smtp-out-123456.example.com
		mail-northeuropeazon11010047.outbound.protection.outlook.com mail-northcentralusazlp170100001.outbound.protection.outlook.com
		mail-wr1-f47.google.com a27-7.smtp-out.us-west-2.amazonses.com m43-7.mailgun.net mail252.suw101.mcdlv.net f141.law15.hotmail.com
		mo4-p00-ob.smtp.rzone.de smtpout1.mo3004.mail-out.ovh.net mx1.ovh.net www64.your-server.de mail.your-server.de mout.kundenserver.de
		pv50p00im-ztdg10021101.me.com sonic307-12.consmr.mail.sg3.yahoo.com smtp123-56.mail.sohu.com mail-m92230.xmail.ntesmail.com
		mail.family.dpdns.org mail.family.eu.org home.family.duckdns.org vm1.westeurope.cloudapp.azure.com relay7.gem.godaddy.com
		pixel1.studio.example probe.observatory.example scanner.office.example mx2024.example contaboserver.net mail.vultr.com localhost`
	for _, name := range append(strings.Fields(chosen), "", ".", "a..b", strings.Repeat("1-2-3.", 50)) {
		if Generic([]byte(name)) {
			t.Errorf("%s is generic", name)
		}
	}
}

// TestRegistered checks names below registries, names below providers, and invalid
// names.
func TestRegistered(t *testing.T) {
	for name, want := range map[string]string{
		"mx1.mail.Example.ORG.": "example.org", "example.org": "example.org", "a.b.example.co.uk": "example.co.uk",
		"mail.family.eu.org": "family.eu.org", "eu.org": "", "org": "", "": "", ".": "", "..": "",
		"vm1.westeurope.cloudapp.azure.com":       "vm1.westeurope.cloudapp.azure.com",
		strings.Repeat("a.", 128) + "example.org": "",
	} {
		if got := Registered([]byte(name)); got != want {
			t.Errorf("Registered(%q) = %q, want %q", name, got, want)
		}
	}
}

// FuzzNames checks that any name is accepted, and that case and a trailing dot are
// ignored.
func FuzzNames(f *testing.F) {
	for _, name := range []string{"static.1-2-3-4.clients.example.net", "x.", "..", "\xff.1", "vmi123456.a.b"} {
		f.Add([]byte(name))
	}
	f.Fuzz(func(t *testing.T, name []byte) {
		before := string(name)
		lower := make([]byte, len(name))
		for i, c := range name {
			if lower[i] = c; 'A' <= c && c <= 'Z' {
				lower[i] += 'a' - 'A'
			}
		}
		generic, registered := Generic(name), Registered(name)
		if string(name) != before {
			t.Fatalf("%q became %q", before, name)
		}
		if len(name) < maxName && len(name) > 0 && Generic(append(name, '.')) != generic {
			t.Errorf("%q with a dot is different", name)
		}
		if registered != "" && !strings.HasSuffix(strings.TrimRight(string(lower), "."), registered) {
			t.Errorf("Registered(%q) = %q", name, registered)
		}
	})
}

func BenchmarkGeneric(b *testing.B) {
	name := []byte("mail-northeuropeazon11010047.outbound.protection.outlook.com")
	b.ReportAllocs()
	for b.Loop() {
		Generic(name)
	}
}
