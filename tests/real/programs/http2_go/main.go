// Command http2_go is both ends of HTTP/2, of net/http over TLS and of
// golang.org/x/net/http2 without, and says on standard output what each end
// saw: one JSON object an exchange.
//
//	http2_go server -listen HOST:PORT [-certificate FILE -key FILE]
//	http2_go client -base URL -plan FILE [-ca FILE] [-streams N]
//
// The server answers like the others in programs/, and besides
//
//	?together=N        when N such requests are under way
//	/trailers/N        N bytes, then the trailer Sum; before it a 103
//	/abort/N           N bytes, then RST_STREAM
//	/events/N?every=MS an event every MS milliseconds, N of them
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
)

const streamsMax = 1000 // that one connection may carry at a time; Go's own default is 250

type options struct {
	listen, certificate, key string
	base, plan, ca           string
	streams                  int
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: http2_go server|client [flags]"))
	}
	var o options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&o.listen, "listen", "", "server: HOST:PORT")
	flags.StringVar(&o.certificate, "certificate", "", "server: PEM; none: without TLS")
	flags.StringVar(&o.key, "key", "", "server: PEM")
	flags.StringVar(&o.base, "base", "", "client: http://HOST:PORT or https://HOST:PORT")
	flags.StringVar(&o.plan, "plan", "", "client: JSON, [[method, target, body], ...]")
	flags.StringVar(&o.ca, "ca", "", "client: PEM")
	flags.IntVar(&o.streams, "streams", 1, "client: at a time, all on one connection")
	flags.Parse(os.Args[2:])
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
	fmt.Fprintln(os.Stderr, "http2_go:", err)
	os.Exit(1)
}

// ---- what both ends share ----

// told is one exchange as one end saw it.
type told struct {
	Method        string            `json:"method"`
	Target        string            `json:"target"`
	Status        int               `json:"status"`
	ResponseBytes int               `json:"response_body_bytes"`
	RequestBytes  int               `json:"request_body_bytes"`
	Protocol      string            `json:"protocol"`
	Trailers      map[string]string `json:"trailers,omitempty"`
	Error         string            `json:"error,omitempty"`
	*handshake
}

type handshake struct {
	Version string `json:"version"`
	Cipher  string `json:"cipher"`
	SNI     string `json:"sni"`
	ALPN    string `json:"alpn"`
}

var telling sync.Mutex

func tell(t told, state *tls.ConnectionState) {
	if state != nil {
		t.handshake = &handshake{
			Version: map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}[state.Version],
			Cipher:  tls.CipherSuiteName(state.CipherSuite),
			SNI:     state.ServerName,
			ALPN:    state.NegotiatedProtocol,
		}
	}
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

func sum(body []byte) string {
	all := sha256.Sum256(body)
	return hex.EncodeToString(all[:])
}

// ---- server ----

func serve(o options) error {
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "listening %s %s\n", listener.Addr().Network(), listener.Addr())
	answers := &answerer{gathered: sync.NewCond(&sync.Mutex{})}
	if o.certificate == "" {
		return http.Serve(listener, h2c.NewHandler(answers, &http2.Server{MaxConcurrentStreams: streamsMax}))
	}
	server := &http.Server{Handler: answers, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streamsMax}}
	return server.ServeTLS(listener, o.certificate, o.key)
}

type answerer struct {
	gathered *sync.Cond
	waiting  int
	round    int
}

// together returns when count callers have called it.
func (a *answerer) together(count int) {
	a.gathered.L.Lock()
	defer a.gathered.L.Unlock()
	a.waiting++
	if a.waiting == count {
		a.waiting = 0
		a.round++
		a.gathered.Broadcast()
		return
	}
	for round := a.round; round == a.round; {
		a.gathered.Wait()
	}
}

func (a *answerer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sent, err := io.ReadAll(r.Body)
	if err != nil {
		fmt.Fprintln(os.Stderr, "http2_go: body of", r.RequestURI, err)
		return
	}
	if count, err := strconv.Atoi(r.URL.Query().Get("together")); err == nil {
		a.together(count)
	}
	kind, number, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	size, noSize := strconv.Atoi(number)
	t := told{Method: r.Method, Target: r.RequestURI, Status: http.StatusOK, RequestBytes: len(sent), Protocol: r.Proto}
	w.Header().Set("Content-Type", "text/plain")
	switch {
	case kind == "bytes" && noSize == nil && r.Method != "POST" && r.Method != "PUT":
		t.answer(w, r, pattern(size, r.URL.Path))
	case kind == "echo" && number == "":
		t.answer(w, r, sent)
	case kind == "trailers" && noSize == nil:
		w.Header().Set("Link", "</style.css>; rel=preload; as=style")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("Trailer", "Sum")
		body := pattern(size, r.URL.Path)
		w.Write(body)
		w.Header().Set("Sum", sum(body))
		t.ResponseBytes = size
		t.Trailers = map[string]string{"Sum": sum(body)}
	case kind == "abort" && noSize == nil:
		w.Write(pattern(size, r.URL.Path))
		w.(http.Flusher).Flush()
		t.ResponseBytes = size
		t.Error = "aborted"
		tell(t, r.TLS)
		panic(http.ErrAbortHandler)
	case kind == "events" && noSize == nil:
		every, _ := strconv.Atoi(r.URL.Query().Get("every"))
		w.Header().Set("Content-Type", "text/event-stream")
		for n := 0; n < size; n++ {
			written, _ := fmt.Fprintf(w, "id: %d\ndata: event %d of %d\n\n", n, n, size)
			t.ResponseBytes += written
			w.(http.Flusher).Flush()
			time.Sleep(time.Duration(every) * time.Millisecond)
		}
	default:
		t.Status = http.StatusNotFound
		t.answer(w, r, []byte("no such thing\n"))
	}
	tell(t, r.TLS)
}

func (t *told) answer(w http.ResponseWriter, r *http.Request, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(t.Status)
	if r.Method != "HEAD" {
		w.Write(body)
		t.ResponseBytes = len(body)
	}
}

// ---- client ----

func ask(o options) error {
	content, err := os.ReadFile(o.plan)
	if err != nil {
		return err
	}
	var plan [][3]string
	if err := json.Unmarshal(content, &plan); err != nil {
		return err
	}
	transport, err := o.transport()
	if err != nil {
		return err
	}
	// The first alone: then there is a connection, and it is known how many streams it may carry.
	if err := o.askOne(transport, plan[0]); err != nil {
		return err
	}
	left := make(chan [3]string)
	results := make(chan error, o.streams)
	for i := 0; i < o.streams; i++ {
		go func() {
			var err error
			for row := range left {
				if one := o.askOne(transport, row); one != nil {
					err = one
				}
			}
			results <- err
		}()
	}
	for _, row := range plan[1:] {
		left <- row
	}
	close(left)
	for i := 0; i < o.streams; i++ {
		if one := <-results; one != nil {
			err = one
		}
	}
	return err
}

func (o options) transport() (http.RoundTripper, error) {
	if o.ca == "" {
		return &http2.Transport{
			AllowHTTP: true,
			DialTLSContext: func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, address)
			},
			DisableCompression: true,
		}, nil
	}
	ca, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Transport{
		ForceAttemptHTTP2:  true,
		TLSClientConfig:    &tls.Config{RootCAs: roots},
		DisableCompression: true,
	}, nil
}

func (o options) askOne(transport http.RoundTripper, row [3]string) error {
	method, target, sent := row[0], row[1], row[2]
	var body io.Reader
	if sent != "" {
		body = strings.NewReader(sent)
	}
	request, err := http.NewRequest(method, o.base+target, body)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	t := told{
		Method: method, Target: target, Status: response.StatusCode,
		ResponseBytes: len(got), RequestBytes: len(sent), Protocol: response.Proto,
	}
	if err != nil {
		t.Error = err.Error()
	}
	for name := range response.Trailer {
		t.Trailers = map[string]string{name: response.Trailer.Get(name)}
	}
	tell(t, response.TLS)
	return nil
}
