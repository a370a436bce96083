// Command server is the HTTP service of the demo and of the tests.
//
// It serves every shape of HTTP/1.1 exchange that a test wants to see again in
// the profiler's log, and keeps the truth to compare with: an access log of one
// JSON line per request. What answers where is the table in handlers.go.
//
// Standard output carries nothing but the access log; what it listens on goes to
// standard error as "listening tcp 127.0.0.1:8080", one line a listener, so that
// a script can ask for port 0 and read the port that it got.
package main

import (
	"context"
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
	port := getenv("HTTP_PORT")
	if port == "" {
		port = "8080"
	}
	var cfg config
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&cfg.host, "host", getenv("HTTP_HOST"), "address to listen on; all when empty (HTTP_HOST)")
	flags.StringVar(&cfg.port, "port", port, "TCP port; 0 chooses a free one (HTTP_PORT)")
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
	listeners, err := listen(cfg)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           newAccessLog(out).wrap(routes()),
		ReadHeaderTimeout: readHeaderTimeout,
	}
	failed := make(chan error, len(listeners))
	for _, listener := range listeners {
		address := listener.Addr()
		fmt.Fprintf(stderr, "listening %s %s\n", address.Network(), address)
		go func(listener net.Listener) { failed <- server.Serve(listener) }(listener)
	}
	select {
	case err := <-failed:
		server.Close()
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		server.Close()
		return fmt.Errorf("requests were still open %v after the signal", shutdownGrace)
	}
	return nil
}

// listen opens the TCP listener and, when one is asked for, the UNIX socket.
func listen(cfg config) ([]net.Listener, error) {
	tcp, err := net.Listen("tcp", net.JoinHostPort(cfg.host, cfg.port))
	if err != nil {
		return nil, err
	}
	if cfg.socket == "" {
		return []net.Listener{tcp}, nil
	}
	// A server that was killed leaves its socket behind, and bind(2) refuses it.
	if info, err := os.Lstat(cfg.socket); err == nil && info.Mode().Type() == fs.ModeSocket {
		os.Remove(cfg.socket)
	}
	unix, err := net.Listen("unix", cfg.socket)
	if err != nil {
		tcp.Close()
		return nil, err
	}
	return []net.Listener{tcp, unix}, nil
}
