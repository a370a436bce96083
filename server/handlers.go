package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Bounds of what a request may ask for: one request must not be able to keep the
// server busy for good.
const (
	maxDelayMS   = 60_000
	maxPieces    = 10_000
	maxBytes     = 1 << 30
	maxEchoBytes = 16 << 20 // an echo is held in memory, see echo
)

// pattern is the content of /bytes/N, repeated: byte i is pattern[i%64].
const pattern = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-\n"

// patternBlock is what is written at once; a whole number of patterns.
var patternBlock = []byte(strings.Repeat(pattern, 1024))

// routes is the whole service. Every path takes every method: what matters here
// is the shape of the exchange, and a POST to /healthz is one more shape.
func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", root)
	mux.HandleFunc("/healthz", healthz)
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/slow", slow)
	mux.HandleFunc("/chunked", chunked)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/bytes/", sized)
	mux.HandleFunc("/status/", status)
	mux.HandleFunc("/early", early)
	return mux
}

// root says hello, and how many bytes it was sent.
func root(w http.ResponseWriter, r *http.Request) {
	received := discardBody(r)
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Message       string `json:"message"`
		ReceivedBytes int64  `json:"received_bytes"`
	}{"hello", received})
}

// healthz is what a load balancer asks.
func healthz(w http.ResponseWriter, r *http.Request) {
	discardBody(r)
	writeJSON(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"ok"})
}

// echo returns the posted body with its content type, or the query of a GET.
//
// The body is read whole first: an HTTP/1 server of net/http stops reading the
// request when the answer begins.
func echo(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		discardBody(r)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		writeBody(w, []byte(r.URL.RawQuery))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEchoBytes))
	if err != nil {
		code := http.StatusBadRequest
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, err.Error(), code)
		return
	}
	contentType := r.Header.Get("Content-Type")
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	w.Header().Set("Content-Type", contentType)
	writeBody(w, body)
}

// slow answers after ?ms= milliseconds.
func slow(w http.ResponseWriter, r *http.Request) {
	discardBody(r)
	ms, err := queryInt(r, "ms", 200, 0, maxDelayMS)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !sleep(r, ms) {
		return
	}
	writeJSON(w, http.StatusOK, struct {
		SleptMS int `json:"slept_ms"`
	}{ms})
}

// chunked sends ?n= pieces, each in a chunk of its own, and the SHA-256 of them
// all in a trailer.
func chunked(w http.ResponseWriter, r *http.Request) {
	discardBody(r)
	pieces, err := queryInt(r, "n", 3, 0, maxPieces)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Trailer", "X-Body-Sha256")
	flusher := http.NewResponseController(w)
	sum := sha256.New()
	for i := 1; i <= pieces; i++ {
		fmt.Fprintf(io.MultiWriter(w, sum), "piece %d of %d\n", i, pieces)
		if flusher.Flush() != nil {
			return
		}
	}
	if pieces == 0 { // without a byte net/http would send Content-Length: 0, and no trailer
		w.WriteHeader(http.StatusOK)
		flusher.Flush()
	}
	w.Header().Set("X-Body-Sha256", hexSum(sum))
}

// events sends ?n= server-sent events, ?interval_ms= apart.
func events(w http.ResponseWriter, r *http.Request) {
	discardBody(r)
	count, err := queryInt(r, "n", 3, 0, maxPieces)
	interval, err2 := queryInt(r, "interval_ms", 100, 0, maxDelayMS)
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	flusher := http.NewResponseController(w)
	for i := 1; i <= count; i++ {
		if i > 1 && !sleep(r, interval) {
			return
		}
		fmt.Fprintf(w, "id: %d\nevent: tick\ndata: {\"tick\":%d}\n\n", i, i)
		if flusher.Flush() != nil {
			return
		}
	}
}

// sized answers GET /bytes/N with N bytes of the pattern, and takes any body sent
// there with another method, to return its size and SHA-256.
func sized(w http.ResponseWriter, r *http.Request) {
	size, err := pathInt(r, "/bytes/", 0, maxBytes)
	if err != nil {
		discardBody(r)
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		sum := sha256.New()
		received, err := io.Copy(sum, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, http.StatusOK, struct {
			Bytes  int64  `json:"bytes"`
			SHA256 string `json:"sha256"`
		}{received, hexSum(sum)})
		return
	}
	discardBody(r)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(size))
	if r.Method == http.MethodHead {
		return
	}
	for left := size; left > 0; {
		n, err := w.Write(patternBlock[:min(left, len(patternBlock))])
		if err != nil {
			return
		}
		left -= n
	}
}

// status answers with the status asked for. RFC 9110, 15.3.5 and 15.4.5: 204 and
// 304 have no body.
func status(w http.ResponseWriter, r *http.Request) {
	discardBody(r)
	code, err := pathInt(r, "/status/", 200, 599)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if code == http.StatusNoContent || code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	writeJSON(w, code, struct {
		Status int `json:"status"`
	}{code})
}

// early sends 103 Early Hints and then the answer. RFC 9110, 15.2: no interim
// response to an HTTP/1.0 client.
func early(w http.ResponseWriter, r *http.Request) {
	discardBody(r)
	if r.ProtoAtLeast(1, 1) {
		w.Header().Set("Link", "</style.css>; rel=preload; as=style")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
	}
	writeJSON(w, http.StatusOK, struct {
		Message string `json:"message"`
	}{"hints came first"})
}

// discardBody reads what a handler has no use for, so that the access log knows
// its size, and returns that.
func discardBody(r *http.Request) int64 {
	n, _ := io.Copy(io.Discard, r.Body)
	return n
}

// sleep waits, and reports false when the client left meanwhile.
func sleep(r *http.Request, ms int) bool {
	timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// queryInt reads one number of the query, within its bounds.
func queryInt(r *http.Request, name string, otherwise, least, most int) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return otherwise, nil
	}
	return boundedInt(name, text, least, most)
}

// pathInt reads the number that follows prefix in the path, within its bounds.
func pathInt(r *http.Request, prefix string, least, most int) (int, error) {
	return boundedInt(prefix+"N", strings.TrimPrefix(r.URL.Path, prefix), least, most)
}

func boundedInt(name, text string, least, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s: %q is no number from %d to %d", name, text, least, most)
	}
	return n, nil
}

func hexSum(sum hash.Hash) string { return hex.EncodeToString(sum.Sum(nil)) }

func writeJSON(w http.ResponseWriter, code int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err) // only our own structs come here
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(code)
	w.Write(append(body, '\n'))
}

func writeBody(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}
