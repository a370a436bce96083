// Command go_conns is both ends of HTTP/1.1 over crypto/tls, on connections of which it is hard to say which
// socket they are on. It says on standard output, one JSON object an exchange, which one it was.
//
//	go_conns wait   does nothing, so that its file is probed
//	go_conns run
//
// It compiles with every Go from 1.17 on, without modules.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"
)

const (
	patience = 30 * time.Second
	turns    = 5
	reused   = 40
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "wait" {
		fmt.Fprintln(os.Stderr, "listening nowhere")
		time.Sleep(time.Hour)
	}
	time.AfterFunc(patience, func() { panic("it takes too long") })
	inside()
	piped()
	inTurn()
	atTheSameAddress()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// told is one exchange; addresses are empty where nobody can know them.
type told struct {
	Target string `json:"target"`
	Client string `json:"client"`
	Server string `json:"server"`
}

func tell(target string, client net.Conn) {
	t := told{Target: target}
	if client != nil {
		t.Client, t.Server = client.LocalAddr().String(), client.RemoteAddr().String()
	}
	must(json.NewEncoder(os.Stdout).Encode(t))
}

// wrapped is a connection that crypto/tls does not know.
type wrapped struct{ net.Conn }

func (w *wrapped) Read(p []byte) (int, error)  { return w.Conn.Read(p) }
func (w *wrapped) Write(p []byte) (int, error) { return w.Conn.Write(p) }

var listener = func() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	return l
}()

// pair is a connection over TCP, by its two ends.
func pair() (client, server net.Conn) {
	client, err := net.Dial("tcp", listener.Addr().String())
	must(err)
	server, err = listener.Accept()
	must(err)
	return client, server
}

var (
	serverConfig = &tls.Config{Certificates: []tls.Certificate{newCertificate()}}
	clientConfig = &tls.Config{InsecureSkipVerify: true}
)

func newCertificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func ask(secured net.Conn, target string) {
	_, err := io.WriteString(secured, "GET "+target+" HTTP/1.1\r\nHost: go.test\r\n\r\n")
	must(err)
	response, err := http.ReadResponse(bufio.NewReader(secured), nil)
	must(err)
	_, err = io.Copy(io.Discard, response.Body)
	must(err)
}

func answer(secured net.Conn) {
	request, err := http.ReadRequest(bufio.NewReader(secured))
	must(err)
	body := strings.Repeat(request.URL.Path+"\n", 3)
	_, err = fmt.Fprintf(secured, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	must(err)
}

// beside runs the server's part in a goroutine of its own, and the client's here.
func beside(server, client func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		server()
	}()
	client()
	<-done
}

// inside: TLS inside of TLS; each end of both in one goroutine.
func inside() {
	client, server := pair()
	beside(func() {
		outer := tls.Server(&wrapped{server}, serverConfig)
		must(outer.Handshake())
		inner := tls.Server(outer, serverConfig)
		must(inner.Handshake())
		answer(inner)
	}, func() {
		outer := tls.Client(&wrapped{client}, clientConfig)
		must(outer.Handshake())
		inner := tls.Client(outer, clientConfig)
		must(inner.Handshake())
		ask(inner, "/inside")
	})
	tell("/inside", nil)
	client.Close()
	server.Close()
}

// pump is a pipe whose other end another goroutine reads from the connection for, and writes to it.
func pump(connection net.Conn) net.Conn {
	near, far := net.Pipe()
	go io.Copy(far, connection)
	go io.Copy(connection, far)
	return near
}

// piped: other goroutines read and write; the one with TLS has just received, from another connection, what
// begins like TLS.
func piped() {
	client, server := pair()
	otherClient, otherServer := pair()
	clientEnd, serverEnd := pump(client), pump(server)
	misleading := []byte("\x16\x03\x01\x40\x00\x01")
	receive := func(from net.Conn) {
		_, err := io.ReadFull(from, make([]byte, len(misleading)))
		must(err)
	}
	beside(func() {
		receive(otherServer)
		_, err := otherServer.Write(misleading)
		must(err)
		secured := tls.Server(serverEnd, serverConfig)
		must(secured.Handshake())
		answer(secured)
	}, func() {
		_, err := otherClient.Write(misleading)
		must(err)
		receive(otherClient)
		secured := tls.Client(clientEnd, clientConfig)
		must(secured.Handshake())
		ask(secured, "/piped")
	})
	tell("/piped", nil)
	for _, one := range []net.Conn{client, server, otherClient, otherServer} {
		one.Close()
	}
}

// inTurn: one goroutine at each end serves two connections.
func inTurn() {
	var clients, servers [2]net.Conn
	for i := range clients {
		clients[i], servers[i] = pair()
	}
	beside(func() {
		var secured [2]*tls.Conn
		for i := range servers {
			secured[i] = tls.Server(&wrapped{servers[i]}, serverConfig)
			must(secured[i].Handshake())
		}
		for n := 0; n < 2*turns; n++ {
			answer(secured[n%2])
		}
	}, func() {
		var secured [2]*tls.Conn
		for i := range clients {
			secured[i] = tls.Client(&wrapped{clients[i]}, clientConfig)
			must(secured[i].Handshake())
		}
		for n := 0; n < 2*turns; n++ {
			target := fmt.Sprintf("/turn/%d", n)
			ask(secured[n%2], target)
			tell(target, clients[n%2])
		}
	})
	for i := range clients {
		clients[i].Close()
		servers[i].Close()
	}
}

// atTheSameAddress: connections one after another, each a *tls.Conn that may lie where the last one did. The
// sockets stay open, and every other one of them is read by another goroutine.
func atTheSameAddress() {
	var open []net.Conn
	for n := 0; n < reused; n++ {
		target := fmt.Sprintf("/reused/%d", n)
		client, server := pair()
		open = append(open, client, server)
		var clientEnd, serverEnd net.Conn = &wrapped{client}, &wrapped{server}
		if n%2 == 1 {
			clientEnd, serverEnd = pump(client), pump(server)
		}
		beside(func() {
			secured := tls.Server(serverEnd, serverConfig)
			must(secured.Handshake())
			answer(secured)
		}, func() {
			secured := tls.Client(clientEnd, clientConfig)
			must(secured.Handshake())
			ask(secured, target)
		})
		if n%2 == 1 {
			tell(target, nil)
		} else {
			tell(target, client)
		}
		runtime.GC()
	}
	for _, one := range open {
		one.Close()
	}
}
