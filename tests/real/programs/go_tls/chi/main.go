// Command chi is go_tls's server with somebody else's router and middleware in
// front of crypto/tls, and with what they put around the ResponseWriter. Its
// command line is `chi server -listen tcp:HOST:PORT`.
package main

import (
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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

func main() {
	listener, err := net.Listen("tcp", strings.TrimPrefix(os.Args[3], "tcp:"))
	if err != nil {
		fail(err)
	}
	certificate, err := newCertificate()
	if err != nil {
		fail(err)
	}
	router := chi.NewRouter()
	router.Use(told, middleware.Recoverer)
	router.Get("/bytes/{size}", sized)
	router.Head("/bytes/{size}", sized)
	router.HandleFunc("/echo", echo)
	router.NotFound(missing)
	fmt.Fprintf(os.Stderr, "listening %s %s\n", listener.Addr().Network(), listener.Addr())
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}}
	fail(http.Serve(tls.NewListener(listener, config), router))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "chi:", err)
	os.Exit(1)
}

func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"go.test"},
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

var telling sync.Mutex

func told(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		counted := &counting{ReadCloser: r.Body}
		r.Body = counted
		wrapped := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		next.ServeHTTP(wrapped, r)
		line, _ := json.Marshal(map[string]any{
			"method": r.Method, "target": r.RequestURI, "status": wrapped.Status(),
			"response_body_bytes": wrapped.BytesWritten(), "request_body_bytes": counted.bytes,
		})
		telling.Lock()
		defer telling.Unlock()
		os.Stdout.Write(append(line, '\n'))
	})
}

type counting struct {
	io.ReadCloser
	bytes int
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.bytes += n
	return n, err
}

func answer(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

func sized(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.Atoi(chi.URLParam(r, "size"))
	if err != nil {
		missing(w, r)
		return
	}
	var body strings.Builder
	for n := 0; body.Len() < size; n++ {
		fmt.Fprintf(&body, "%s:%06d\n", r.URL.Path, n)
	}
	answer(w, r, http.StatusOK, []byte(body.String()[:size]))
}

func echo(w http.ResponseWriter, r *http.Request) {
	sent, err := io.ReadAll(r.Body)
	if err != nil {
		fail(err)
	}
	answer(w, r, http.StatusOK, sent)
}

func missing(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	answer(w, r, http.StatusNotFound, []byte("no such thing\n"))
}
