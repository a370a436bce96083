// Command traffic is the client of the demo: it sends GETs and POSTs to four
// paths of the demo's server in a fixed rotation, checks every answer, and prints
// what it did. With a port for TLS it sends each request twice, in plaintext and
// over TLS. Its summary is the truth that the profiler's log is compared with.
//
// Exit status: 0 when every request was answered as it should be, 1 when one was
// not, 2 for a usage error. SIGINT and SIGTERM end it early, summary included.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// config says what to send where.
type config struct {
	host        string
	port        string
	tlsPort     string        // "" for plaintext only
	ca          string        // file with the certificates that the server's must come from; "" trusts any
	requests    int           // in plaintext, and as many over TLS
	delay       time.Duration // between the starts of two requests
	concurrency int
	seed        int64         // chooses the content of the bodies
	wait        time.Duration // how long to wait for the server to listen
	hold        bool          // send nothing before standard input ends
	json        bool          // the summary as one line of JSON
	pause       time.Duration // before the first request
}

func main() {
	cfg, err := parse(os.Args[1:], os.Getenv, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	trust, err := cfg.tlsConfig()
	if err == nil {
		err = waitForServer(ctx, cfg.address(plain), cfg.wait)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		os.Exit(1)
	}
	if cfg.hold {
		waitForEnd(ctx, os.Stdin)
	}
	select {
	case <-ctx.Done():
	case <-time.After(cfg.pause):
	}
	report := run(ctx, cfg, trust).report()
	if cfg.json {
		err = report.writeJSON(os.Stdout)
	} else {
		err = report.writeText(os.Stdout)
	}
	if err != nil || report.Errors > 0 {
		os.Exit(1)
	}
}

// scheme is the way of a request to the server.
type scheme string

const (
	plain  scheme = "http"
	secure scheme = "https"
)

func (c config) schemes() []scheme {
	if c.tlsPort == "" {
		return []scheme{plain}
	}
	return []scheme{plain, secure}
}

func (c config) address(s scheme) string {
	if s == secure {
		return net.JoinHostPort(c.host, c.tlsPort)
	}
	return net.JoinHostPort(c.host, c.port)
}

// tlsConfig is how the server is asked for and trusted. The certificate of the
// demo's server is its own, made at its start: without a CA there is nothing to
// check it by.
func (c config) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{InsecureSkipVerify: c.ca == ""}
	// RFC 6066, 3: an address is no server name; for one Go would send none.
	if ip := net.ParseIP(c.host); ip != nil && ip.IsLoopback() {
		config.ServerName = "localhost"
	}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", c.ca)
		}
	}
	return config, nil
}

// parse reads the flags; the environment holds their defaults.
func parse(args []string, getenv func(string) string, stderr io.Writer) (config, error) {
	text := func(name, otherwise string) string {
		if value := getenv(name); value != "" {
			return value
		}
		return otherwise
	}
	requests, err := strconv.Atoi(text("TOTAL_REQUESTS", "23"))
	if err != nil {
		return config{}, fmt.Errorf("TOTAL_REQUESTS: %w", err)
	}
	delayMS, err := strconv.Atoi(text("REQUEST_DELAY_MS", "100"))
	if err != nil {
		return config{}, fmt.Errorf("REQUEST_DELAY_MS: %w", err)
	}
	var cfg config
	var waitSeconds, pauseSeconds float64
	flags := flag.NewFlagSet("traffic", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&cfg.host, "host", text("TARGET_HOST", "127.0.0.1"), "the server's host (TARGET_HOST)")
	flags.StringVar(&cfg.port, "port", text("HTTP_PORT", "8080"), "the server's port (HTTP_PORT)")
	flags.StringVar(&cfg.tlsPort, "tls-port", getenv("HTTPS_PORT"), "the server's port for HTTPS; plaintext only when empty (HTTPS_PORT)")
	flags.StringVar(&cfg.ca, "ca", getenv("CA_FILE"), "PEM file by which to check the server's certificate; any is good when empty (CA_FILE)")
	flags.IntVar(&cfg.requests, "requests", requests, "how many requests to send, in plaintext and as many over TLS (TOTAL_REQUESTS)")
	flags.IntVar(&delayMS, "delay-ms", delayMS, "milliseconds between the starts of two requests (REQUEST_DELAY_MS)")
	flags.IntVar(&cfg.concurrency, "concurrency", 1, "connections each way, with one request at a time")
	flags.Int64Var(&cfg.seed, "seed", 1, "chooses the content of the bodies")
	flags.Float64Var(&waitSeconds, "wait", 0, "seconds to wait for the server to listen")
	flags.Float64Var(&pauseSeconds, "pause", 0, "seconds to wait before the first request, in which a profiler can look into this program")
	flags.BoolVar(&cfg.hold, "hold", false, "send nothing before standard input ends")
	flags.BoolVar(&cfg.json, "json", false, "print the summary as JSON")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if cfg.requests < 0 || delayMS < 0 || waitSeconds < 0 || pauseSeconds < 0 || cfg.concurrency < 1 {
		return config{}, errors.New("a number is out of range")
	}
	cfg.delay = time.Duration(delayMS) * time.Millisecond
	cfg.wait = time.Duration(waitSeconds * float64(time.Second))
	cfg.pause = time.Duration(pauseSeconds * float64(time.Second))
	return cfg, nil
}

// waitForServer connects until that works. It sends nothing, so that the server
// sees no request more than the summary counts. It tries the port for plaintext,
// which the server opens last: over TLS its error log would have a broken handshake.
func waitForServer(ctx context.Context, address string, limit time.Duration) error {
	if limit == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return connection.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no server: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitForEnd reads to the end of in, or to that of ctx.
func waitForEnd(ctx context.Context, in io.Reader) {
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, in)
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}
