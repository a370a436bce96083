// Command go_tls is both ends of HTTP/1.1 over crypto/tls, and says on standard
// output what each end saw: one JSON object an exchange.
//
//	go_tls server -listen tcp:127.0.0.1:0 ...   answers like the other servers in programs/
//	go_tls client -connect tcp:HOST:PORT -plan FILE ...
//
// It compiles with every Go from 1.17 on, without modules. What the options
// change is how the library is called, never what the peers tell each other.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	serverName = "go.test"
	piece      = 7000 // bytes, with -pieces: not a divisor of a TLS record, nor a multiple of one
	patience   = 30 * time.Second
)

type options struct {
	address string
	plan    string
	version string
	wrap    bool // what crypto/tls gets is not a *net.TCPConn
	move    bool // goroutines find themselves on another thread after a read
	pieces  bool // bodies come in pieces, chunked, with pauses: reads have to wait
	stacks  bool // writes and reads at every depth of a new stack
	close   bool // a connection for each request
	half    bool // and each end says that it has no more to send, while the other still sends
	each    int  // connections, all open before the first request
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: go_tls server|client [flags]"))
	}
	var o options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&o.address, "listen", "", "server: tcp:HOST:PORT or unix:PATH")
	flags.StringVar(&o.address, "connect", "", "client: tcp:HOST:PORT or unix:PATH")
	flags.StringVar(&o.plan, "plan", "", "client: JSON, [[method, target, body], ...]")
	flags.StringVar(&o.version, "tls", "1.3", "highest version that is offered")
	flags.BoolVar(&o.wrap, "wrap", false, "crypto/tls over a type of our own around the connection")
	flags.BoolVar(&o.move, "move", false, "goroutines move between threads")
	flags.BoolVar(&o.pieces, "pieces", false, "bodies chunked, in pieces, with pauses")
	flags.BoolVar(&o.stacks, "stacks", false, "writes and reads on stacks that have to grow")
	flags.BoolVar(&o.close, "close", false, "client: a connection for each request")
	flags.BoolVar(&o.half, "half", false, "client: the same, and half-closed after the request")
	flags.IntVar(&o.each, "each", 1, "client: connections, the whole plan on each")
	flags.Parse(os.Args[2:])
	if o.move {
		stir()
	}
	var err error
	switch os.Args[1] {
	case "server":
		err = serve(o)
	case "client":
		err = ask(o)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "go_tls:", err)
	os.Exit(1)
}

// ---- what both ends share ----

// told is one exchange as one end saw it.
type told struct {
	Method        string `json:"method"`
	Target        string `json:"target"`
	Status        int    `json:"status"`
	ResponseBytes int    `json:"response_body_bytes"`
	RequestBytes  int    `json:"request_body_bytes"`
	Moved         int    `json:"moved"` // reads that ended on another thread than they began
	Version       string `json:"version"`
	Cipher        string `json:"cipher"`
	SNI           string `json:"sni"`
	ALPN          string `json:"alpn"`
}

var telling sync.Mutex

func tell(t told, state tls.ConnectionState) {
	t.Version = map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}[state.Version]
	t.Cipher = tls.CipherSuiteName(state.CipherSuite)
	t.SNI = state.ServerName
	t.ALPN = state.NegotiatedProtocol
	line, _ := json.Marshal(t)
	telling.Lock()
	defer telling.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

// pattern is that of harness/truth.py: it depends on the seed at every place.
func pattern(size int, seed string) []byte {
	var b bytes.Buffer
	for n := 0; b.Len() < size; n++ {
		fmt.Fprintf(&b, "%s:%06d\n", seed, n)
	}
	return b.Bytes()[:size]
}

func split(address string) (network, place string) {
	colon := strings.IndexByte(address, ':')
	if colon < 0 {
		fail(fmt.Errorf("address %q", address))
	}
	return address[:colon], address[colon+1:]
}

func (o options) limit(config *tls.Config) *tls.Config {
	config.MinVersion = tls.VersionTLS12
	config.NextProtos = []string{"http/1.1"}
	if o.version == "1.2" {
		config.MaxVersion = tls.VersionTLS12
	}
	return config
}

// wrapped is what a program has that counts bytes or sets deadlines below TLS.
type wrapped struct {
	net.Conn
	bytes int64
}

func (w *wrapped) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	atomic.AddInt64(&w.bytes, int64(n))
	return n, err
}

func (w *wrapped) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	atomic.AddInt64(&w.bytes, int64(n))
	return n, err
}

func (o options) over(connection net.Conn) net.Conn {
	if o.wrap {
		return &wrapped{Conn: connection}
	}
	return connection
}

// stir keeps more threads than processors busy, each with a goroutine of its
// own: whoever waits is woken on another one.
func stir() {
	runtime.GOMAXPROCS(4)
	for i := 0; i < 6; i++ {
		go func() {
			for {
				runtime.LockOSThread()
				for begin := time.Now(); time.Since(begin) < 200*time.Microsecond; {
					runtime.Gosched()
				}
				runtime.UnlockOSThread()
				time.Sleep(time.Millisecond)
			}
		}()
	}
}

// watched counts the reads that ended on another thread than they began.
type watched struct {
	io.Reader
	moved int
}

func (w *watched) Read(p []byte) (int, error) {
	before := syscall.Gettid()
	n, err := w.Reader.Read(p)
	if syscall.Gettid() != before {
		w.moved++
	}
	return n, err
}

// deep calls f when so many frames of some 150 bytes lie on a new stack. Over a
// range of depths each function below f finds too little room once, and has its
// stack moved.
func deep(depth int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		descend(depth, f)
	}()
	<-done
}

//go:noinline
func descend(depth int, f func()) byte {
	var frame [96]byte
	if depth == 0 {
		f()
	} else {
		frame[depth%96] = descend(depth-1, f)
	}
	return frame[(depth+1)%96]
}

const depths = 128 // 19 KB: three times a stack is doubled

// ---- server ----

func serve(o options) error {
	network, place := split(o.address)
	listener, err := net.Listen(network, place)
	if err != nil {
		return err
	}
	certificate, err := newCertificate()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "listening %s %s\n", listener.Addr().Network(), listener.Addr())
	server := &http.Server{
		Handler:      &answerer{o: o},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	config := o.limit(&tls.Config{Certificates: []tls.Certificate{certificate}})
	return server.Serve(tls.NewListener(&wrapping{listener, o}, config))
}

type wrapping struct {
	net.Listener
	o options
}

func (w *wrapping) Accept() (net.Conn, error) {
	connection, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return w.o.over(connection), nil
}

func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: serverName},
		DNSNames:     []string{serverName},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

type answerer struct {
	o     options
	count int64
}

func (a *answerer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := &watched{Reader: r.Body}
	sent, err := io.ReadAll(body)
	if err != nil {
		fmt.Fprintln(os.Stderr, "go_tls: body of", r.RequestURI, err)
		return
	}
	status, answer := http.StatusNotFound, []byte("no such thing\n")
	if r.Method != "POST" && r.Method != "PUT" && strings.HasPrefix(r.URL.Path, "/bytes/") {
		if size, err := strconv.Atoi(r.URL.Path[len("/bytes/"):]); err == nil {
			status, answer = http.StatusOK, pattern(size, r.URL.Path)
		}
	} else if r.URL.Path == "/echo" {
		status, answer = http.StatusOK, sent
	}
	if !a.o.pieces {
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	if r.Method == "HEAD" {
		answer = nil
	}
	send := func() {
		a.write(w, answer)
	}
	if a.o.stacks {
		deep(int(atomic.AddInt64(&a.count, 1))%depths, send)
	} else {
		send()
	}
	tell(told{
		Method: r.Method, Target: r.RequestURI, Status: status,
		ResponseBytes: len(answer), RequestBytes: len(sent), Moved: body.moved,
	}, *r.TLS)
}

func (a *answerer) write(w http.ResponseWriter, answer []byte) {
	flusher := w.(http.Flusher)
	if !a.o.pieces {
		w.Write(answer)
		if a.o.stacks {
			flusher.Flush() // else it is written when the handler is back on its own stack
		}
		return
	}
	for len(answer) > 0 {
		n := min(piece, len(answer))
		w.Write(answer[:n])
		flusher.Flush()
		answer = answer[n:]
		if len(answer) > 0 {
			time.Sleep(2 * time.Millisecond)
		}
	}
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

// ---- client ----

type asked struct {
	method, target string
	body           []byte
}

func readPlan(path string) ([]asked, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rows [][3]string
	if err := json.Unmarshal(content, &rows); err != nil {
		return nil, err
	}
	plan := make([]asked, len(rows))
	for i, row := range rows {
		plan[i] = asked{row[0], row[1], []byte(row[2])}
	}
	return plan, nil
}

func ask(o options) error {
	plan, err := readPlan(o.plan)
	if err != nil {
		return err
	}
	if o.half || o.stacks {
		return askByHand(o, plan)
	}
	transports := make([]*http.Transport, o.each)
	for i := range transports {
		first, err := o.dial()
		if err != nil {
			return err
		}
		transports[i] = o.transport(first)
	}
	results := make(chan error, o.each)
	for i := range transports {
		go func(i int) { results <- o.askAll(transports[i], plan, i) }(i)
	}
	for range transports {
		if one := <-results; one != nil {
			err = one
		}
	}
	return err
}

func (o options) dial() (*tls.Conn, error) {
	network, place := split(o.address)
	connection, err := net.Dial(network, place)
	if err != nil {
		return nil, err
	}
	connection.SetDeadline(time.Now().Add(patience))
	config := o.limit(&tls.Config{ServerName: serverName, InsecureSkipVerify: true})
	secured := tls.Client(o.over(connection), config)
	return secured, secured.Handshake()
}

// transport uses the connection first, and makes others where it needs them.
func (o options) transport(first net.Conn) *http.Transport {
	var lock sync.Mutex
	return &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			lock.Lock()
			connection := first
			first = nil
			lock.Unlock()
			if connection != nil {
				return connection, nil
			}
			return o.dial()
		},
		DisableKeepAlives:  o.close,
		DisableCompression: true,
		TLSNextProto:       map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

func (o options) askAll(transport *http.Transport, plan []asked, number int) error {
	defer transport.CloseIdleConnections()
	for _, one := range plan {
		target := one.target
		if o.each > 1 {
			target = fmt.Sprintf("%s?connection=%d", target, number)
		}
		request, err := http.NewRequest(one.method, "https://"+serverName+target, nil)
		if err != nil {
			return err
		}
		if len(one.body) > 0 {
			request.ContentLength = int64(len(one.body))
			request.Body = io.NopCloser(bytes.NewReader(one.body))
			if o.pieces {
				request.ContentLength = -1
				request.Body = io.NopCloser(&slow{one.body})
			}
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return fmt.Errorf("%s %s: %w", one.method, target, err)
		}
		body := &watched{Reader: response.Body}
		got, err := io.Copy(io.Discard, body)
		response.Body.Close()
		if err != nil {
			return fmt.Errorf("%s %s: %w", one.method, target, err)
		}
		tell(told{
			Method: one.method, Target: target, Status: response.StatusCode,
			ResponseBytes: int(got), RequestBytes: len(one.body), Moved: body.moved,
		}, *response.TLS)
	}
	return nil
}

// slow gives a body in pieces, with pauses.
type slow struct{ rest []byte }

func (s *slow) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.rest[:min(piece, len(s.rest))])
	s.rest = s.rest[n:]
	if len(s.rest) > 0 {
		time.Sleep(2 * time.Millisecond)
	}
	return n, nil
}

// askByHand calls Write and Read of *tls.Conn itself: each on a stack of its own
// with -stacks, and the connection half-closed after the request with -half. A
// request is one Write, whatever its size.
func askByHand(o options, plan []asked) error {
	var connection *tls.Conn
	var reader *bufio.Reader
	for i, one := range plan {
		if connection == nil {
			var err error
			if connection, err = o.dial(); err != nil {
				return err
			}
			reader = bufio.NewReader(connection)
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", one.method, one.target, serverName)
		if len(one.body) > 0 {
			fmt.Fprintf(&b, "Content-Length: %d\r\n", len(one.body))
		}
		b.WriteString("\r\n")
		b.Write(one.body)
		var got int64
		var response *http.Response
		var err error
		send := func() { _, err = connection.Write(b.Bytes()) }
		receive := func() {
			if response, err = http.ReadResponse(reader, &http.Request{Method: one.method}); err == nil {
				got, err = io.Copy(io.Discard, response.Body)
			}
		}
		if o.stacks {
			deep(i%depths, send)
		} else {
			send()
		}
		if err == nil && o.half {
			err = connection.CloseWrite()
		}
		if err != nil {
			return fmt.Errorf("sending %s %s: %w", one.method, one.target, err)
		}
		if o.stacks {
			deep((i+depths/2)%depths, receive)
		} else {
			receive()
		}
		if err != nil {
			return fmt.Errorf("answer to %s %s: %w", one.method, one.target, err)
		}
		tell(told{
			Method: one.method, Target: one.target, Status: response.StatusCode,
			ResponseBytes: int(got), RequestBytes: len(one.body),
		}, connection.ConnectionState())
		if o.half {
			// What comes after the answer is the server's own end.
			if rest, err := io.Copy(io.Discard, reader); rest != 0 || err != nil {
				return fmt.Errorf("after %s %s: %d bytes, %v", one.method, one.target, rest, err)
			}
			connection.Close()
			connection = nil
		}
	}
	if connection != nil {
		return connection.Close()
	}
	return nil
}
