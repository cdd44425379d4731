// Milter is an empty milter based on github.com/d--j/go-milter. It continues each session, and
// requests no message text. Its argument is the path of a Unix socket.
package main

import (
	"log"
	"net"
	"os"

	milter "github.com/d--j/go-milter"
)

type empty struct{ milter.NoOpMilter }

func (empty) Connect(string, string, uint16, string, milter.Modifier) (*milter.Response, error) {
	return milter.RespContinue, nil
}

func (empty) Helo(string, milter.Modifier) (*milter.Response, error) { return milter.RespContinue, nil }

func (empty) MailFrom(string, string, milter.Modifier) (*milter.Response, error) {
	return milter.RespContinue, nil
}

func (empty) RcptTo(string, string, milter.Modifier) (*milter.Response, error) {
	return milter.RespContinue, nil
}

func (empty) Data(milter.Modifier) (*milter.Response, error) { return milter.RespContinue, nil }

func (empty) EndOfMessage(milter.Modifier) (*milter.Response, error) {
	return milter.RespContinue, nil
}

func main() {
	l, err := net.Listen("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := milter.NewServer(milter.WithMilter(func() milter.Milter { return empty{} }),
		milter.WithProtocol(milter.OptNoBody|milter.OptNoHeaders|milter.OptNoEOH|milter.OptRcptRej))
	log.Fatal(server.Serve(l))
}
