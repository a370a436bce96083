// Command server is the HTTP service of the demo and of the tests.
//
// It serves every shape of HTTP/1.1 exchange that a test wants to see again in
// the profiler's log, in plaintext and over TLS, and keeps the truth to compare
// with: an access log of one JSON line per request. What answers where is the
// table in handlers.go.
//
// Standard output carries nothing but the access log; what it listens on goes to
// standard error as "listening tcp 127.0.0.1:8080", "listening tls …" and
// "listening unix …", one line a listener, so that a script can ask for port 0
// and read the port that it got.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	// readHeaderTimeout ends a client that never finishes its head; long, because
	// tests hold half a request open on purpose.
	readHeaderTimeout = time.Minute
	// shutdownGrace is how long requests in flight may take after a signal.
	shutdownGrace = 5 * time.Second
)

// config says where to listen and where the access log goes.
type config struct {
	host      string // "" is every address
	port      string // "0" lets the kernel choose
	tlsPort   string // the same, for HTTPS; "" for none
	socket    string // path of a UNIX socket to listen on as well; "" for none
	accessLog string // file, appended to; "" is standard output
}

func main() {
	cfg, err := parse(os.Args[1:], os.Getenv, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		os.Exit(2) // the flag package has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// parse reads the flags; the environment holds their defaults.
func parse(args []string, getenv func(string) string, stderr io.Writer) (config, error) {
	text := func(name, otherwise string) string {
		if value := getenv(name); value != "" {
			return value
		}
		return otherwise
	}
	var cfg config
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&cfg.host, "host", getenv("HTTP_HOST"), "address to listen on; all when empty (HTTP_HOST)")
	flags.StringVar(&cfg.port, "port", text("HTTP_PORT", "8080"), "TCP port; 0 chooses a free one (HTTP_PORT)")
	flags.StringVar(&cfg.tlsPort, "tls-port", text("HTTPS_PORT", "8443"), "TCP port for HTTPS; 0 chooses a free one, none when empty (HTTPS_PORT)")
	flags.StringVar(&cfg.socket, "socket", getenv("HTTP_SOCKET"), "UNIX socket to listen on as well (HTTP_SOCKET)")
	flags.StringVar(&cfg.accessLog, "access-log", getenv("ACCESS_LOG"), "file for the access log; standard output when empty (ACCESS_LOG)")
	return cfg, flags.Parse(args)
}

// run serves until ctx ends, then lets requests in flight finish.
func run(ctx context.Context, cfg config, stdout, stderr io.Writer) error {
	out := stdout
	if cfg.accessLog != "" {
		file, err := os.OpenFile(cfg.accessLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer file.Close()
		out = file
	}
	var certificate tls.Certificate
	if cfg.tlsPort != "" {
		var err error
		if certificate, err = selfSigned(time.Now()); err != nil {
			return err
		}
	}
	listeners, err := listen(cfg)
	if err != nil {
		return err
	}
	handler := newAccessLog(out).wrap(routes())
	// Two servers: one that serves both ways configures HTTP/2 by whichever comes first.
	plain := &http.Server{Handler: handler, ReadHeaderTimeout: readHeaderTimeout}
	secure := &http.Server{
		Handler: handler, ReadHeaderTimeout: readHeaderTimeout,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		fmt.Fprintf(stderr, "listening %s %s\n", l.kind, l.Addr())
		go func(l listener) {
			if l.kind == "tls" {
				failed <- secure.ServeTLS(l, "", "") // no files: the certificate is in TLSConfig
			} else {
				failed <- plain.Serve(l)
			}
		}(l)
	}
	select {
	case err := <-failed:
		plain.Close()
		secure.Close()
		return err
	case <-ctx.Done():
	}
	return shutdown(plain, secure)
}

// shutdown lets requests in flight finish, on all servers at once.
func shutdown(servers ...*http.Server) error {
	grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	ended := make(chan error, len(servers))
	for _, server := range servers {
		go func(server *http.Server) { ended <- server.Shutdown(grace) }(server)
	}
	var late error
	for range servers {
		if err := <-ended; err != nil {
			late = fmt.Errorf("requests were still open %v after the signal", shutdownGrace)
		}
	}
	for _, server := range servers {
		server.Close()
	}
	return late
}

// listener is a way in: "tcp", "tls" or "unix".
type listener struct {
	net.Listener
	kind string
}

// listen opens what is asked for, all of it or nothing. The port for plaintext
// comes last: who can connect to it can connect to the others.
func listen(cfg config) (opened []listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range opened {
				l.Close()
			}
		}
	}()
	open := func(kind, network, address string) error {
		l, err := net.Listen(network, address)
		if err == nil {
			opened = append(opened, listener{l, kind})
		}
		return err
	}
	if cfg.socket != "" {
		// A server that was killed leaves its socket behind, and bind(2) refuses it.
		if info, err := os.Lstat(cfg.socket); err == nil && info.Mode().Type() == fs.ModeSocket {
			os.Remove(cfg.socket)
		}
		if err := open("unix", "unix", cfg.socket); err != nil {
			return opened, err
		}
	}
	if cfg.tlsPort != "" {
		if err := open("tls", "tcp", net.JoinHostPort(cfg.host, cfg.tlsPort)); err != nil {
			return opened, err
		}
	}
	return opened, open("tcp", "tcp", net.JoinHostPort(cfg.host, cfg.port))
}
