// Command load makes the traffic of the benchmarks, and says exactly how much of
// it there was, and how long each request took, as one JSON object.
//
//	load http   -address HOST:PORT [-rate N] [-tls] ...   requests to an HTTP server
//	load binary -address HOST:PORT ...                    the same calls, a protocol that is not HTTP
//	load echo   -address HOST:PORT                        the server of `binary`
//	load https  -address HOST:PORT                        a server of HTTP/1.1 over crypto/tls
//	load certificate -directory D                         D/certificate.pem and D/key.pem, for other servers
//
// With a rate the schedule is open: request i is due at i/rate after the start,
// whatever became of those before it. Latency is reported twice: from the moment
// the request was written, and from the moment it was due. Without a rate each
// connection sends its next request when it has the answer.
//
// The client writes a request in one call and reads into one buffer: its own work
// is small, so that what the profiler adds is not hidden in it.
package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	readBuffer   = 64 << 10
	binaryBytes  = 128 // of a request and of an answer: about what a small HTTP head has
	replyTimeout = 20 * time.Second
)

type config struct {
	address     string
	connections int
	rate        float64       // requests a second, all connections together; 0: as fast as answers come
	duration    time.Duration // of the schedule
	requests    int           // stop after so many; 0: the duration decides
	target      string
	unique      bool // a query that is another one each time
	body        int  // POST with a body of so many bytes; 0: GET
	close       bool // a connection for each request
	tls         bool
	wait        time.Duration
	directory   string
	hold        int // rounds of one request on each connection, and a wait for a line on stdin after each
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: load http|binary|echo|https|certificate [flags]"))
	}
	var cfg config
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&cfg.address, "address", "127.0.0.1:0", "server")
	flags.IntVar(&cfg.connections, "connections", 16, "connections")
	flags.Float64Var(&cfg.rate, "rate", 0, "requests per second, open loop; 0: closed loop")
	flags.DurationVar(&cfg.duration, "duration", 10*time.Second, "how long")
	flags.IntVar(&cfg.requests, "requests", 0, "end after so many (closed loop)")
	flags.StringVar(&cfg.target, "target", "/healthz", "request target")
	flags.BoolVar(&cfg.unique, "unique", false, "append ?n=… to the target, never the same")
	flags.IntVar(&cfg.body, "body", 0, "POST so many bytes")
	flags.BoolVar(&cfg.close, "close", false, "a connection for each request")
	flags.BoolVar(&cfg.tls, "tls", false, "over TLS, no certificate asked for")
	flags.DurationVar(&cfg.wait, "wait", 0, "before anything: until this file is probed, that it may be seen from its first byte")
	flags.StringVar(&cfg.directory, "directory", ".", "where the certificate goes")
	flags.IntVar(&cfg.hold, "hold", 0, "rounds of one request on every connection; waits for a line on standard input after each")
	flags.Parse(os.Args[2:])
	time.Sleep(cfg.wait)
	var err error
	switch os.Args[1] {
	case "echo":
		err = echo(cfg.address)
	case "https":
		err = serveTLS(cfg.address)
	case "certificate":
		err = writeCertificate(cfg.directory)
	case "http":
		if cfg.hold > 0 {
			err = hold(cfg)
		} else {
			err = drive(cfg, func() exchanger { return &httpExchanger{cfg: cfg} })
		}
	case "binary":
		err = drive(cfg, func() exchanger { return &binaryExchanger{} })
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}

// exchanger is one connection's side of the protocol.
type exchanger interface {
	// exchange sends request number n and reads its answer to the end.
	exchange(connection net.Conn, n int) error
}

type httpExchanger struct {
	cfg     config
	reader  *bufio.Reader
	on      net.Conn
	request []byte
}

func (h *httpExchanger) exchange(connection net.Conn, n int) error {
	if h.on != connection {
		h.on = connection
		if h.reader == nil {
			h.reader = bufio.NewReaderSize(connection, readBuffer)
		} else {
			h.reader.Reset(connection)
		}
	}
	if h.request == nil || h.cfg.unique {
		h.request = h.build(n)
	}
	if _, err := connection.Write(h.request); err != nil {
		return err
	}
	return readAnswer(h.reader)
}

func (h *httpExchanger) build(n int) []byte {
	var b bytes.Buffer
	method := "GET"
	if h.cfg.body > 0 {
		method = "POST"
	}
	fmt.Fprintf(&b, "%s %s", method, h.cfg.target)
	if h.cfg.unique {
		fmt.Fprintf(&b, "?n=%d", n)
	}
	fmt.Fprintf(&b, " HTTP/1.1\r\nHost: %s\r\nUser-Agent: netprofiler-load/1\r\nAccept: */*\r\n", h.cfg.address)
	if h.cfg.close {
		b.WriteString("Connection: close\r\n")
	}
	if h.cfg.body > 0 {
		fmt.Fprintf(&b, "Content-Type: application/octet-stream\r\nContent-Length: %d\r\n", h.cfg.body)
	}
	b.WriteString("\r\n")
	b.Write(bytes.Repeat([]byte("0123456789abcde\n"), h.cfg.body/16+1)[:h.cfg.body])
	return b.Bytes()
}

// readAnswer takes one answer that has a Content-Length off the reader.
func readAnswer(reader *bufio.Reader) error {
	length := 0
	for first := true; ; first = false {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		if first {
			if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
				return fmt.Errorf("answer begins with %q", line)
			}
			continue
		}
		if len(line) == 0 {
			break
		}
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && bytes.EqualFold(name, []byte("content-length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	_, err := reader.Discard(length)
	return err
}

type binaryExchanger struct {
	request [binaryBytes]byte
	answer  [binaryBytes]byte
}

func (b *binaryExchanger) exchange(connection net.Conn, n int) error {
	// The first byte is no letter: the first look says that this is not HTTP.
	b.request[0] = 0xfe
	binary.LittleEndian.PutUint64(b.request[8:], uint64(n))
	if _, err := connection.Write(b.request[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(connection, b.answer[:]); err != nil {
		return err
	}
	if b.answer != b.request {
		return errors.New("the echo is another")
	}
	return nil
}

// tally is what one connection saw.
type tally struct {
	service []time.Duration // from write to the end of the answer
	due     []time.Duration // from when it was due
	errors  int
	first   error
}

func drive(cfg config, newExchanger func() exchanger) error {
	tallies := make([]tally, cfg.connections)
	connections := make([]net.Conn, cfg.connections)
	if !cfg.close {
		for i := range connections {
			var err error
			if connections[i], err = dial(cfg); err != nil {
				return err
			}
		}
	}
	stop := interrupted()
	start := time.Now().Add(20 * time.Millisecond)
	var group sync.WaitGroup
	for i := range connections {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			run(cfg, i, start, stop, connections[i], newExchanger(), &tallies[i])
		}(i)
	}
	group.Wait()
	return report(cfg, tallies, time.Since(start))
}

// dial connects, and with TLS shakes hands.
func dial(cfg config) (net.Conn, error) {
	connection, err := net.Dial("tcp", cfg.address)
	if err != nil || !cfg.tls {
		return connection, err
	}
	secured := tls.Client(connection, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"})
	return secured, secured.Handshake()
}

// interrupted is closed at SIGINT or SIGTERM: what was done until then is reported.
func interrupted() <-chan struct{} {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	stop := make(chan struct{})
	go func() { <-signals; close(stop) }()
	return stop
}

// run is one connection's share: requests i, i+connections, i+2*connections, …
func run(cfg config, i int, start time.Time, stop <-chan struct{}, connection net.Conn, e exchanger, t *tally) {
	end := start.Add(cfg.duration)
	for n := i; cfg.requests == 0 || n < cfg.requests; n += cfg.connections {
		select {
		case <-stop:
			return
		default:
		}
		due := time.Now()
		if cfg.rate > 0 {
			due = start.Add(time.Duration(float64(n) / cfg.rate * float64(time.Second)))
			if !due.Before(end) {
				return
			}
			time.Sleep(time.Until(due))
		} else if !due.Before(end) {
			return
		}
		begin := time.Now()
		var err error
		if cfg.close || connection == nil {
			if connection, err = dial(cfg); err != nil {
				t.fail(err)
				continue
			}
		}
		connection.SetDeadline(begin.Add(replyTimeout))
		err = e.exchange(connection, n)
		now := time.Now()
		if err != nil {
			t.fail(err)
		} else {
			t.service = append(t.service, now.Sub(begin))
			t.due = append(t.due, now.Sub(due))
		}
		if err != nil || cfg.close {
			connection.Close()
			connection = nil
		}
	}
	if connection != nil {
		connection.Close()
	}
}

func (t *tally) fail(err error) {
	t.errors++
	if t.first == nil {
		t.first = err
	}
}

type quantiles struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

func report(cfg config, tallies []tally, elapsed time.Duration) error {
	var service, due []time.Duration
	result := struct {
		Requests  int       `json:"requests"` // answered, completely
		Errors    int       `json:"errors"`
		Error     string    `json:"error,omitempty"` // the first
		Seconds   float64   `json:"seconds"`
		PerSecond float64   `json:"per_second"`
		Service   quantiles `json:"service_us"`
		Due       quantiles `json:"due_us"`
	}{Seconds: elapsed.Seconds()}
	for _, t := range tallies {
		service = append(service, t.service...)
		due = append(due, t.due...)
		result.Errors += t.errors
		if t.first != nil && result.Error == "" {
			result.Error = t.first.Error()
		}
	}
	result.Requests = len(service)
	result.PerSecond = float64(len(service)) / elapsed.Seconds()
	result.Service = summarise(service)
	if cfg.rate > 0 {
		result.Due = summarise(due)
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func summarise(values []time.Duration) quantiles {
	if len(values) == 0 {
		return quantiles{}
	}
	sort.Slice(values, func(i, j int) bool { return values[i] < values[j] })
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	at := func(q float64) float64 { return us(values[int(q*float64(len(values)-1))]) }
	var sum time.Duration
	for _, v := range values {
		sum += v
	}
	return quantiles{us(sum) / float64(len(values)), at(.5), at(.9), at(.99), at(.999), us(values[len(values)-1])}
}

// hold opens all connections, then sends one request on each, round after round;
// after each round it prints the count and waits for a line.
func hold(cfg config) error {
	connections := make([]net.Conn, cfg.connections)
	for i := range connections {
		var err error
		if connections[i], err = dial(cfg); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		defer connections[i].Close()
	}
	input := bufio.NewReader(os.Stdin)
	sender := &httpExchanger{cfg: cfg, reader: bufio.NewReaderSize(nil, 4096)}
	say := func(done int) error {
		fmt.Printf("{\"requests\":%d}\n", done)
		_, err := input.ReadString('\n')
		return err
	}
	if err := say(0); err != nil {
		return err
	}
	for round := 0; round < cfg.hold; round++ {
		for i, connection := range connections {
			connection.SetDeadline(time.Now().Add(replyTimeout))
			if err := sender.exchange(connection, i); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		}
		if err := say((round + 1) * cfg.connections); err != nil {
			return err
		}
	}
	return nil
}

// echo sends back what it is sent.
func echo(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "listening tcp %s\n", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			var buffer [binaryBytes]byte
			for {
				if _, err := io.ReadFull(connection, buffer[:]); err != nil {
					return
				}
				if _, err := connection.Write(buffer[:]); err != nil {
					return
				}
			}
		}()
	}
}

// serveTLS answers like the server of this repository answers /healthz, over crypto/tls.
func serveTLS(address string) error {
	certificate, key, err := makeCertificate()
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "listening tcp %s\n", listener.Addr())
	answer := []byte("{\"status\":\"ok\"}\n")
	server := &http.Server{
		ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(answer)
		}),
	}
	return server.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}}))
}

func makeCertificate() (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), nil
}

func writeCertificate(directory string) error {
	certificate, key, err := makeCertificate()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(directory, "certificate.pem"), certificate, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(directory, "key.pem"), key, 0o600)
}
