package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// exchange sends one request to a fresh server and returns the answer, its body
// and the line of the access log.
func exchange(t *testing.T, method, target, body string) (*http.Response, string, entry) {
	t.Helper()
	var logged bytes.Buffer
	server := httptest.NewServer(newAccessLog(&logged).wrap(routes()))
	request, err := http.NewRequest(method, server.URL+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "text/x-test")
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	server.Close() // waits for the handler, so that its line is there
	var line entry
	if err := json.Unmarshal(logged.Bytes(), &line); err != nil {
		t.Fatalf("access log %q: %v", logged.String(), err)
	}
	return response, string(content), line
}

func TestAnswersAndAccessLog(t *testing.T) {
	upload := strings.Repeat("x", 300_000)
	sum := sha256.Sum256([]byte(upload))
	for _, test := range []struct {
		method, target, body string
		status               int
		want                 string
	}{
		{"GET", "/", "", 200, `{"message":"hello","received_bytes":0}` + "\n"},
		{"POST", "/", "12345", 200, `{"message":"hello","received_bytes":5}` + "\n"},
		{"GET", "/nowhere", "", 404, "404 page not found\n"},
		{"GET", "/healthz", "", 200, `{"status":"ok"}` + "\n"},
		{"POST", "/healthz", "?", 200, `{"status":"ok"}` + "\n"},
		{"GET", "/echo?a=1&b=%20", "", 200, "a=1&b=%20"},
		{"POST", "/echo", upload, 200, upload},
		{"POST", "/echo", "", 200, ""},
		{"GET", "/slow?ms=1", "", 200, `{"slept_ms":1}` + "\n"},
		{"GET", "/slow?ms=-1", "", 400, "ms: \"-1\" is no number from 0 to 60000\n"},
		{"GET", "/chunked?n=2", "", 200, "piece 1 of 2\npiece 2 of 2\n"},
		{"GET", "/chunked?n=0", "", 200, ""},
		{"GET", "/events?n=2&interval_ms=1", "", 200,
			"id: 1\nevent: tick\ndata: {\"tick\":1}\n\nid: 2\nevent: tick\ndata: {\"tick\":2}\n\n"},
		{"GET", "/events?n=x", "", 400, "n: \"x\" is no number from 0 to 10000\n"},
		{"GET", "/bytes/70", "", 200, pattern + pattern[:6]},
		{"GET", "/bytes/0", "", 200, ""},
		{"HEAD", "/bytes/70", "", 200, ""},
		{"PUT", "/bytes/0", upload, 200,
			fmt.Sprintf(`{"bytes":300000,"sha256":"%s"}`+"\n", hex.EncodeToString(sum[:]))},
		{"GET", "/bytes/many", "", 404, "/bytes/N: \"many\" is no number from 0 to 1073741824\n"},
		{"GET", "/status/204", "", 204, ""},
		{"GET", "/status/304", "", 304, ""},
		{"DELETE", "/status/503", "", 503, `{"status":503}` + "\n"},
		{"GET", "/status/103", "", 404, "/status/N: \"103\" is no number from 200 to 599\n"},
		{"GET", "/early", "", 200, `{"message":"hints came first"}` + "\n"},
		{"HEAD", "/", "", 200, ""},
	} {
		t.Run(test.method+" "+test.target, func(t *testing.T) {
			response, content, line := exchange(t, test.method, test.target, test.body)
			if response.StatusCode != test.status || content != test.want {
				t.Errorf("got %d %.200q, want %d %.200q", response.StatusCode, content, test.status, test.want)
			}
			want := entry{
				Time: line.Time, Remote: line.Remote, Protocol: "HTTP/1.1",
				Method: test.method, Target: test.target, Status: test.status,
				RequestBodyBytes: int64(len(test.body)), ResponseBodyBytes: int64(len(test.want)),
			}
			if line != want {
				t.Errorf("access log: got %+v, want %+v", line, want)
			}
		})
	}
}

func TestEchoKeepsTheContentType(t *testing.T) {
	response, _, _ := exchange(t, "POST", "/echo", "a")
	if got := response.Header.Get("Content-Type"); got != "text/x-test" {
		t.Errorf("got %q", got)
	}
}

func TestEchoRefusesWhatItCannotHold(t *testing.T) {
	recorder := httptest.NewRecorder()
	body := io.LimitReader(zeros{}, maxEchoBytes+1)
	routes().ServeHTTP(recorder, httptest.NewRequest("POST", "/echo", body))
	if recorder.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d", recorder.Code)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestBytesAreOfTheirSizeAcrossBlocks(t *testing.T) {
	size := 3*len(patternBlock) + 7
	response, content, _ := exchange(t, "GET", fmt.Sprintf("/bytes/%d", size), "")
	if response.ContentLength != int64(size) || content != strings.Repeat(pattern, size/64+1)[:size] {
		t.Errorf("Content-Length %d, %d bytes, want %d", response.ContentLength, len(content), size)
	}
}

func TestChunkedHasATrailer(t *testing.T) {
	for _, target := range []string{"/chunked?n=5", "/chunked?n=0"} {
		response, content, _ := exchange(t, "GET", target, "")
		sum := sha256.Sum256([]byte(content))
		if got := response.Trailer.Get("X-Body-Sha256"); got != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: trailer %q", target, got)
		}
		if len(response.TransferEncoding) != 1 || response.TransferEncoding[0] != "chunked" {
			t.Errorf("%s: transfer encoding %v", target, response.TransferEncoding)
		}
	}
}

func TestEarlyHintsComeFirst(t *testing.T) {
	server := httptest.NewServer(routes())
	defer server.Close()
	var interim []int
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
		interim = append(interim, code)
		return nil
	}}
	request, _ := http.NewRequestWithContext(
		httptrace.WithClientTrace(context.Background(), trace), "GET", server.URL+"/early", nil)
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if len(interim) != 1 || interim[0] != http.StatusEarlyHints || response.StatusCode != 200 {
		t.Errorf("got %v, then %d", interim, response.StatusCode)
	}
}

func TestParseTakesTheEnvironmentAsDefault(t *testing.T) {
	environment := map[string]string{
		"HTTP_PORT": "81", "HTTPS_PORT": "444", "HTTP_HOST": "::1", "HTTP_SOCKET": "/s", "ACCESS_LOG": "/l",
	}
	getenv := func(name string) string { return environment[name] }
	for _, test := range []struct {
		args   []string
		getenv func(string) string
		want   config
	}{
		{nil, func(string) string { return "" }, config{port: "8080", tlsPort: "8443"}},
		{nil, getenv, config{"::1", "81", "444", "/s", "/l"}},
		{[]string{"-port", "82", "-tls-port", "445", "-socket", ""}, getenv, config{"::1", "82", "445", "", "/l"}},
		{[]string{"-tls-port", ""}, getenv, config{"::1", "81", "", "/s", "/l"}},
	} {
		if got, err := parse(test.args, test.getenv, io.Discard); err != nil || got != test.want {
			t.Errorf("%v: got %+v, %v", test.args, got, err)
		}
	}
	if _, err := parse([]string{"-nonsense"}, getenv, io.Discard); err == nil {
		t.Error("an unknown flag passed")
	}
}

// TestRun serves on free ports, in plaintext and over TLS, and on a UNIX socket,
// and shuts down while a request is in flight each way, which is answered.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	cfg := config{
		host: "127.0.0.1", port: "0", tlsPort: "0",
		socket: filepath.Join(dir, "http.sock"), accessLog: filepath.Join(dir, "access.log"),
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	stderr, write := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, cfg, io.Discard, write) }()

	var tcp, secure, unix string
	lines := bufio.NewReader(stderr)
	for _, want := range []struct {
		kind    string
		address *string
	}{{"unix", &unix}, {"tls", &secure}, {"tcp", &tcp}} {
		if _, err := fmt.Fscanf(lines, "listening "+want.kind+" %s\n", want.address); err != nil {
			t.Fatal(err)
		}
	}
	overSocket := http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", unix) },
	}}
	if response, err := overSocket.Get("http://socket/healthz"); err != nil || response.StatusCode != 200 {
		t.Fatalf("over the UNIX socket: %v, %v", response, err)
	}

	insecure := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	answered := make(chan error, 2)
	connected := make(chan struct{}, 2)
	for _, origin := range []string{"http://" + tcp, "https://" + secure} {
		go func(origin string) {
			trace := &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { connected <- struct{}{} }}
			request, _ := http.NewRequestWithContext(
				httptrace.WithClientTrace(context.Background(), trace), "GET", origin+"/slow?ms=300", nil)
			_, err := insecure.Do(request)
			answered <- err
		}(origin)
	}
	<-connected
	<-connected
	time.Sleep(50 * time.Millisecond) // for the server to read the requests
	stop()
	for range [2]int{} {
		if err := <-answered; err != nil {
			t.Errorf("in flight at the signal: %v", err)
		}
	}
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}

	log, err := os.ReadFile(cfg.accessLog)
	if err != nil {
		t.Fatal(err)
	}
	ways := map[string]int{}
	for _, text := range strings.Split(strings.TrimSpace(string(log)), "\n") {
		var line struct{ TLS *tlsFacts }
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatal(err)
		}
		if line.TLS == nil {
			ways["plain"]++
		} else if *line.TLS == (tlsFacts{Version: "1.3", Cipher: line.TLS.Cipher}) && strings.HasPrefix(line.TLS.Cipher, "TLS_") {
			ways["tls"]++ // no server name for an address, no protocol by ALPN
		}
	}
	if ways["plain"] != 2 || ways["tls"] != 1 {
		t.Errorf("got %v of\n%s", ways, log)
	}
}

// TestListenOpensAllOrNothing asks for a port that is taken.
func TestListenOpensAllOrNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	socket := filepath.Join(t.TempDir(), "http.sock")
	for _, cfg := range []config{
		{host: "127.0.0.1", port: port, tlsPort: "0", socket: socket},
		{host: "127.0.0.1", port: "0", tlsPort: port, socket: socket},
	} {
		if _, err := listen(cfg); err == nil {
			t.Errorf("%+v passed", cfg)
		}
		if _, err := os.Stat(socket); err == nil {
			t.Error("the UNIX socket is still there")
		}
	}
}

// TestTheAccessLogTellsWhatWasAgreedOn compares it with what the client says.
func TestTheAccessLogTellsWhatWasAgreedOn(t *testing.T) {
	certificate, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	for _, test := range []struct {
		name      string
		version   uint16
		protocols []string
		want      tlsFacts
	}{
		{"localhost", tls.VersionTLS13, nil, tlsFacts{Version: "1.3", SNI: "localhost"}},
		{"server", tls.VersionTLS12, nil, tlsFacts{Version: "1.2", SNI: "server"}},
		{"127.0.0.1", tls.VersionTLS13, []string{"http/1.1"}, tlsFacts{Version: "1.3", ALPN: "http/1.1"}},
		{"::1", tls.VersionTLS12, []string{"h2", "http/1.1"}, tlsFacts{Version: "1.2", ALPN: "h2"}},
	} {
		var logged bytes.Buffer
		server := httptest.NewUnstartedServer(newAccessLog(&logged).wrap(routes()))
		server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}}
		server.EnableHTTP2 = true
		server.StartTLS()
		transport := &http.Transport{
			ForceAttemptHTTP2: len(test.protocols) == 2,
			TLSClientConfig: &tls.Config{
				RootCAs: roots, ServerName: test.name, NextProtos: test.protocols, MaxVersion: test.version,
			},
		}
		response, err := (&http.Client{Transport: transport}).Get(server.URL + "/healthz")
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		response.Body.Close()
		transport.CloseIdleConnections()
		server.Close()
		var line entry
		if err := json.Unmarshal(logged.Bytes(), &line); err != nil {
			t.Fatalf("access log %q: %v", logged.String(), err)
		}
		test.want.Cipher = tls.CipherSuiteName(response.TLS.CipherSuite)
		if line.TLS == nil || *line.TLS != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, line.TLS, test.want)
		}
	}
}
