package main

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// entry is one line of the access log. Body sizes are those of the content as
// the handlers see it: no chunk framing, and 0 for what HEAD, 204 and 304 omit.
type entry struct {
	Time              time.Time `json:"time"`   // when the handler was done
	Remote            string    `json:"remote"` // "127.0.0.1:4711"; "@" over a UNIX socket
	Protocol          string    `json:"protocol"`
	Method            string    `json:"method"`
	Target            string    `json:"target"` // as sent
	Status            int       `json:"status"` // the final one
	RequestBodyBytes  int64     `json:"request_body_bytes"`
	ResponseBodyBytes int64     `json:"response_body_bytes"`
	TLS               *tlsFacts `json:"tls,omitempty"` // absent in plaintext
}

// tlsFacts is what client and server agreed on, named as in the profiler's record.
type tlsFacts struct {
	Version string `json:"version"` // "1.3"
	Cipher  string `json:"cipher"`  // IANA's name
	SNI     string `json:"sni,omitempty"`
	ALPN    string `json:"alpn,omitempty"`
}

func tlsFactsOf(state *tls.ConnectionState) *tlsFacts {
	if state == nil {
		return nil
	}
	return &tlsFacts{
		Version: strings.TrimPrefix(tls.VersionName(state.Version), "TLS "),
		Cipher:  tls.CipherSuiteName(state.CipherSuite),
		SNI:     state.ServerName,
		ALPN:    state.NegotiatedProtocol,
	}
}

// accessLog writes one JSON line per request. A line is out before net/http
// flushes the end of the response: who has an answer that fits net/http's buffer
// finds its line.
type accessLog struct {
	mu  sync.Mutex
	out *json.Encoder
}

func newAccessLog(out io.Writer) *accessLog {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false) // a target's & stays &
	return &accessLog{out: encoder}
}

// wrap logs what next answers.
func (l *accessLog) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := &countingBody{ReadCloser: r.Body}
		answer := &countingWriter{ResponseWriter: w, noBody: r.Method == http.MethodHead}
		r.Body = body
		next.ServeHTTP(answer, r)
		if answer.status == 0 {
			answer.status = http.StatusOK // net/http sends it for a handler that wrote nothing
		}
		l.write(entry{
			Time:              time.Now().UTC(),
			Remote:            r.RemoteAddr,
			Protocol:          r.Proto,
			Method:            r.Method,
			Target:            r.RequestURI,
			Status:            answer.status,
			RequestBodyBytes:  body.count,
			ResponseBodyBytes: answer.count,
			TLS:               tlsFactsOf(r.TLS),
		})
	})
}

func (l *accessLog) write(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.Encode(e) // a full disk must not fail the request
}

// countingBody counts what a handler reads of the request's body.
type countingBody struct {
	io.ReadCloser
	count int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.count += int64(n)
	return n, err
}

// countingWriter keeps the final status and counts the body sent.
type countingWriter struct {
	http.ResponseWriter
	noBody bool // HEAD: net/http takes the bytes and sends none
	status int
	count  int64
}

// Unwrap lets http.ResponseController reach Flush.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *countingWriter) WriteHeader(code int) {
	if w.status == 0 && code >= 200 { // below are interim responses
		w.status = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	if !w.noBody {
		w.count += int64(n)
	}
	return n, err
}
