package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// answer does what the demo's server does, as far as the rotation goes.
func answer(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	switch r.URL.Path {
	case "/":
		fmt.Fprintf(w, `{"message":"hello","received_bytes":%d}`+"\n", len(body))
	case "/healthz":
		fmt.Fprintln(w, `{"status":"ok"}`)
	case "/slow":
		time.Sleep(slowMS * time.Millisecond)
		fmt.Fprintf(w, `{"slept_ms":%d}`+"\n", slowMS)
	case "/echo":
		if r.Method == http.MethodGet {
			body = []byte(r.URL.RawQuery)
		}
		w.Write(body)
	}
}

// serve starts handler and returns a config that points at it, and what counts
// the connections it got.
func serve(t *testing.T, handler http.HandlerFunc) (config, func() int) {
	t.Helper()
	var mu sync.Mutex
	connections := 0
	server := httptest.NewUnstartedServer(handler)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if state == http.StateNew {
			connections++
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	host, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	cfg := config{host: host, port: port, requests: 23, concurrency: 1, seed: 1}
	return cfg, func() int {
		mu.Lock()
		defer mu.Unlock()
		return connections
	}
}

func TestRunCountsWhatItSent(t *testing.T) {
	cfg, connections := serve(t, answer)
	report := run(context.Background(), cfg, nil).report()
	if report.Requests != 23 || report.Errors != 0 || len(report.Rows) != len(rotation) {
		t.Errorf("got %+v", report)
	}
	total := 0
	for _, row := range report.Rows {
		total += row.Count
		if row.Status != 200 || (row.RequestBodyBytes > 0) != (row.Method == "POST") || row.ResponseBodyBytes == 0 {
			t.Errorf("row %+v", row)
		}
	}
	if total != 23 {
		t.Errorf("the rows sum to %d", total)
	}
	if connections() != 1 {
		t.Errorf("%d connections, want 1", connections())
	}
}

// TestRunSendsEachRequestBothWays also sees what the client says in its hello.
func TestRunSendsEachRequestBothWays(t *testing.T) {
	cfg, connections := serve(t, answer)
	var mu sync.Mutex
	hellos := map[string]int{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(answer))
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		hellos[fmt.Sprintf("%q %q", hello.ServerName, hello.SupportedProtos)]++
		return nil, nil
	}}
	server.StartTLS()
	t.Cleanup(server.Close)
	_, cfg.tlsPort, _ = net.SplitHostPort(server.Listener.Addr().String())
	trust, err := cfg.tlsConfig()
	if err != nil {
		t.Fatal(err)
	}
	report := run(context.Background(), cfg, trust).report()
	if report.Requests != 46 || report.Errors != 0 || len(report.Rows) != 2*len(rotation) {
		t.Errorf("got %+v", report)
	}
	rows := map[row]int{}
	totals := map[scheme]int{}
	for _, row := range report.Rows {
		totals[row.Scheme] += row.Count
		row.Scheme = ""
		rows[row]++
	}
	for row, count := range rows {
		if count != 2 {
			t.Errorf("not the same both ways: %+v", row)
		}
	}
	if totals[plain] != 23 || totals[secure] != 23 {
		t.Errorf("the rows sum to %v", totals)
	}
	if want := `"localhost" []`; connections() != 1 || len(hellos) != 1 || hellos[want] != 1 {
		t.Errorf("%d connections in plaintext, hellos %v, want one and one of %s", connections(), hellos, want)
	}
}

func TestACertificateIsCheckedWhenACAIsGiven(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(answer))
	defer server.Close()
	plaintext, _ := serve(t, answer)
	host, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	other := plaintext
	other.host, other.tlsPort, other.ca = host, port, filepath.Join(t.TempDir(), "ca.pem")

	// httptest's certificate names example.com and 127.0.0.1, but not localhost: good, but for the name.
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(other.ca, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	trust, err := other.tlsConfig()
	if err != nil {
		t.Fatal(err)
	}
	if report := run(context.Background(), other, trust).report(); report.Errors != 23 {
		t.Errorf("a wrong name: %d errors of %d, want 23", report.Errors, report.Requests)
	}
	trust.ServerName = "example.com"
	if report := run(context.Background(), other, trust).report(); report.Errors != 0 || report.Requests != 46 {
		t.Errorf("the right name: %d errors of %d, %v", report.Errors, report.Requests, report.Failures)
	}

	os.WriteFile(other.ca, []byte("nonsense"), 0o600)
	if _, err := other.tlsConfig(); err == nil {
		t.Error("a CA file without a certificate passed")
	}
	other.ca = filepath.Join(t.TempDir(), "none")
	if _, err := other.tlsConfig(); err == nil {
		t.Error("a CA file that is not there passed")
	}
}

func TestTheServerIsAskedForByItsName(t *testing.T) {
	for host, want := range map[string]string{"127.0.0.1": "localhost", "::1": "localhost", "server": "", "10.0.0.1": ""} {
		trust, err := config{host: host}.tlsConfig()
		if err != nil || trust.ServerName != want || !trust.InsecureSkipVerify {
			t.Errorf("%s: got %q, %v, want %q", host, trust.ServerName, err, want)
		}
	}
}

func TestRunOverSeveralConnections(t *testing.T) {
	cfg, connections := serve(t, answer)
	cfg.concurrency = 4
	cfg.requests = 101
	report := run(context.Background(), cfg, nil).report()
	if report.Requests != 101 || report.Errors != 0 {
		t.Errorf("got %+v", report)
	}
	if connections() > 4 {
		t.Errorf("%d connections, want 4 at most", connections())
	}
}

func TestWrongAnswersAreErrors(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"status": func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", 500) },
		"body":   func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "nonsense") },
		"none":   func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _ := serve(t, handler)
			report := run(context.Background(), cfg, nil).report()
			if report.Requests != 23 || report.Errors != 23 || len(report.Failures) != maxFailures {
				t.Errorf("got %+v", report)
			}
		})
	}
}

func TestAnEarlyEndStillHasItsSummary(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	count := 0
	cfg, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if count++; count == 5 {
			cancel()
		}
		answer(w, r)
	})
	cfg.delay = 50 * time.Millisecond // so that no sixth is handed out meanwhile
	report := run(ctx, cfg, nil).report()
	if report.Requests != 5 || report.Errors != 0 {
		t.Errorf("got %+v", report)
	}
}

func TestCallsDependOnNumberAndSeedAlone(t *testing.T) {
	for i := range make([]struct{}, 2*len(rotation)) {
		a, b, c := callFor(i, 7), callFor(i, 7), callFor(i, 8)
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("%d: %v and %v", i, a, b)
		}
		if a.body != nil && bytes.Equal(a.body, c.body) {
			t.Errorf("%d: another seed, the same body", i)
		}
	}
}

func TestAnAnswerBeforeItsTimeIsWrong(t *testing.T) {
	c := callFor(6, 1)
	if c.check(200, c.wantBody, c.least) != nil || c.check(200, c.wantBody, c.least-1) == nil {
		t.Error("GET /slow")
	}
}

func TestPercentileIsNearestRank(t *testing.T) {
	var sorted []time.Duration
	for i := 1; i <= 100; i++ {
		sorted = append(sorted, time.Duration(i))
	}
	for _, test := range []struct {
		sorted  []time.Duration
		percent int
		want    time.Duration
	}{{nil, 50, 0}, {sorted[:1], 99, 1}, {sorted[:3], 50, 2}, {sorted, 50, 50}, {sorted, 99, 99}} {
		if got := percentile(test.sorted, test.percent); got != test.want {
			t.Errorf("p%d of %d: got %d, want %d", test.percent, len(test.sorted), got, test.want)
		}
	}
}

func TestReports(t *testing.T) {
	s := newSummary()
	s.add(plain, callFor(0, 1), outcome{status: 200, responseBody: 39, took: 2 * time.Millisecond})
	s.add(secure, callFor(1, 1), outcome{took: time.Millisecond, err: io.ErrUnexpectedEOF})
	report := s.report()
	var text, encoded bytes.Buffer
	report.writeText(&text)
	for _, want := range []string{
		"2 requests in 0.00 s, 1 errors, latency p50 1.0 ms, p99 2.0 ms\n",
		"  http  GET  /          200      1\n  https POST /echo     none      1\n",
		"  failed: https POST /echo: unexpected EOF\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in %q", want, text.String())
		}
	}
	report.writeJSON(&encoded)
	var back map[string]any
	if err := json.Unmarshal(encoded.Bytes(), &back); err != nil || back["errors"] != 1.0 {
		t.Errorf("%v: %s", err, encoded.String())
	}
}

func TestParse(t *testing.T) {
	none := func(string) string { return "" }
	environment := map[string]string{
		"TARGET_HOST": "server", "HTTP_PORT": "81", "HTTPS_PORT": "444", "CA_FILE": "/ca",
		"TOTAL_REQUESTS": "5", "REQUEST_DELAY_MS": "0",
	}
	getenv := func(name string) string { return environment[name] }
	for _, test := range []struct {
		args   []string
		getenv func(string) string
		want   config
	}{
		{nil, none, config{"127.0.0.1", "8080", "", "", 23, 100 * time.Millisecond, 1, 1, 0, false, false, 0}},
		{nil, getenv, config{"server", "81", "444", "/ca", 5, 0, 1, 1, 0, false, false, 0}},
		{strings.Fields("--host ::1 --port 82 --tls-port 445 --ca /c --requests 7 --delay-ms 3 --concurrency 2 --seed 9 --wait 1.5 --hold --json --pause 0.5"),
			getenv, config{"::1", "82", "445", "/c", 7, 3 * time.Millisecond, 2, 9, 1500 * time.Millisecond, true, true, 500 * time.Millisecond}},
	} {
		if got, err := parse(test.args, test.getenv, io.Discard); err != nil || got != test.want {
			t.Errorf("%v: got %+v, %v", test.args, got, err)
		}
	}
	for _, args := range []string{"--requests -1", "--concurrency 0", "--delay-ms x", "--pause -1", "extra", "--nonsense"} {
		if _, err := parse(strings.Fields(args), none, io.Discard); err == nil {
			t.Errorf("%s passed", args)
		}
	}
	environment["TOTAL_REQUESTS"] = "many"
	if _, err := parse(nil, getenv, io.Discard); err == nil {
		t.Error("TOTAL_REQUESTS=many passed")
	}
}

func TestWaitForServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := waitForServer(context.Background(), address, time.Second); err != nil {
		t.Error(err)
	}
	listener.Close()
	if waitForServer(context.Background(), address, 50*time.Millisecond) == nil {
		t.Error("nobody listens, and it did not say so")
	}
	if err := waitForServer(context.Background(), address, 0); err != nil {
		t.Error(err)
	}
}

func TestWaitForEnd(t *testing.T) {
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() {
		waitForEnd(context.Background(), in)
		close(done)
	}()
	out.Write([]byte("not yet\n"))
	select {
	case <-done:
		t.Error("a line is no end")
	case <-time.After(20 * time.Millisecond):
	}
	out.Close()
	<-done

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	in, _ = io.Pipe()
	waitForEnd(ctx, in)
}
