package hostname

// anyNumber is the value for default names whose first label has a digit.
const anyNumber = "0"

// defaults lists domain suffixes of providers that name their customers' hosts. A name that a
// provider has chosen is called a default name.
//
// The value is the word before the number in the first label of a default name, or anyNumber. If
// only customers' hosts have names with the suffix, the value is empty, and the suffix is treated
// as a public suffix.
//
// The table includes the rdns rows in filter/lookup/intel/clouds.tsv; a test in package lookup
// compares the two. Suffixes below which customers choose the names, such as dynamic DNS suffixes,
// are not included.
var defaults = map[string]string{
	// Clouds and hosting providers.
	"aeza.network":                         anyNumber,
	"awsglobalaccelerator.com":             "",
	"compute-1.amazonaws.com":              "",
	"compute.amazonaws.com":                "",
	"compute.amazonaws.com.cn":             "",
	"serverdedicati.aruba.it":              "",
	"static.arubacloud.com":                "",
	"static.arubacloud.de":                 "",
	"static.arubacloud.fr":                 "",
	"static.arubacloud.pl":                 "",
	"static.cloudzy.com":                   "",
	"colocrossing.com":                     anyNumber,
	"contaboserver.net":                    "",
	"static.contabo.net":                   "",
	"cdn77.com":                            anyNumber,
	"host.secureserver.net":                "",
	"ip.secureserver.net":                  "",
	"googleusercontent.com":                "",
	"clients.your-server.de":               "",
	"your-server.de":                       "dedi",
	"hinet-ip.hinet.net":                   "",
	"dedicated.hosteurope.de":              "",
	"vs.hosteurope.de":                     "",
	"hstgr.cloud":                          "",
	"hostwindsdns.com":                     "",
	"static.sl-reverse.com":                "",
	"stratoserver.net":                     "",
	"onlinehome-server.info":               "",
	"onlinehome-server.com":                "",
	"onlinehome-server.de":                 "",
	"ip.linodeusercontent.com":             "",
	"members.linode.com":                   "",
	"multacom.com":                         anyNumber,
	"ultrasrv.de":                          "v",
	"bestsrv.de":                           "v",
	"goodsrv.de":                           "v",
	"happysrv.de":                          "v",
	"hotsrv.de":                            "v",
	"luckysrv.de":                          "v",
	"megasrv.de":                           "v",
	"nicesrv.de":                           "v",
	"powersrv.de":                          "v",
	"quicksrv.de":                          "v",
	"supersrv.de":                          "v",
	"yourvserver.net":                      "v",
	"kimsufi.com":                          anyNumber,
	"ovh.net":                              "ns",
	"vps.ovh.ca":                           "",
	"vps.ovh.net":                          "",
	"vps.ovh.us":                           "",
	"pbiaas.com":                           anyNumber,
	"pfcloud.io":                           anyNumber,
	"static.quadranet.com":                 "",
	"vs.sakura.ne.jp":                      "",
	"instances.scw.cloud":                  "",
	"rev.poneytelecom.eu":                  "",
	"startdedicated.com":                   "",
	"startdedicated.de":                    "",
	"startdedicated.net":                   "",
	"serveroffer.net":                      anyNumber,
	"4vendeta.com":                         anyNumber,
	"upcloud.host":                         "",
	"hosted-by-vdsina.ru":                  "",
	"choopa.net":                           anyNumber,
	"vultr.com":                            anyNumber,
	"vultrusercontent.com":                 "",
	"inaddr.ip-pool.com":                   "",
	"cloudapp.net":                         "",
	"deploy.static.akamaitechnologies.com": "",

	// Access providers whose names contain no address.
	"uudial.net": anyNumber,
}

// chosen lists suffixes that are missing from the public suffix list. Customers choose the names
// below these suffixes. The value is the number of labels between the suffix and the customer's
// domain. For example, the value is 1 if the name of a region precedes the suffix.
var chosen = map[string]int{
	"cloudapp.azure.com": 1,
	"mooo.com":           0,
	"chickenkiller.com":  0,
	"strangled.net":      0,
}
