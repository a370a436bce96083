package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strconv"
	"sync"
	"time"
)

// maxFailures bounds the list of what went wrong; the count goes on.
const maxFailures = 10

// key is what requests are counted by.
type key struct {
	scheme       scheme
	method, path string
	status       int
}

// summary collects outcomes from all connections.
type summary struct {
	mu        sync.Mutex
	start     time.Time
	elapsed   time.Duration
	rows      map[key]*row
	latencies []time.Duration
	errors    int
	failures  []string
}

// report is the summary as it is printed.
type report struct {
	Requests  int      `json:"requests"`
	Errors    int      `json:"errors"`
	Failures  []string `json:"failures,omitempty"` // the first few
	Seconds   float64  `json:"seconds"`
	LatencyMS struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
	} `json:"latency_ms"`
	Rows []row `json:"rows"`
}

// row is one line of the report.
type row struct {
	Scheme            scheme `json:"scheme"`
	Method            string `json:"method"`
	Path              string `json:"path"`
	Status            int    `json:"status"` // 0: no answer
	Count             int    `json:"count"`
	RequestBodyBytes  int64  `json:"request_body_bytes"`
	ResponseBodyBytes int64  `json:"response_body_bytes"`
}

func newSummary() *summary {
	return &summary{start: time.Now(), rows: map[key]*row{}}
}

func (s *summary) add(way scheme, c call, o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{way, c.method, c.path, o.status}
	r := s.rows[k]
	if r == nil {
		r = &row{Scheme: way, Method: c.method, Path: c.path, Status: o.status}
		s.rows[k] = r
	}
	r.Count++
	r.RequestBodyBytes += int64(len(c.body))
	r.ResponseBodyBytes += o.responseBody
	s.latencies = append(s.latencies, o.took)
	if o.err != nil {
		s.errors++
		if len(s.failures) < maxFailures {
			s.failures = append(s.failures, fmt.Sprintf("%s %s %s: %v", way, c.method, c.path, o.err))
		}
	}
}

func (s *summary) finish() { s.elapsed = time.Since(s.start) }

func (s *summary) report() report {
	sort.Slice(s.latencies, func(i, j int) bool { return s.latencies[i] < s.latencies[j] })
	r := report{
		Requests: len(s.latencies), Errors: s.errors, Failures: s.failures,
		Seconds: s.elapsed.Seconds(), Rows: []row{},
	}
	r.LatencyMS.P50 = milliseconds(percentile(s.latencies, 50))
	r.LatencyMS.P99 = milliseconds(percentile(s.latencies, 99))
	for _, row := range s.rows {
		r.Rows = append(r.Rows, *row)
	}
	sort.Slice(r.Rows, func(i, j int) bool {
		a, b := r.Rows[i], r.Rows[j]
		if a.Scheme != b.Scheme {
			return a.Scheme < b.Scheme
		}
		if a.Path != b.Path {
			return a.Path < b.Path
		}
		if a.Method != b.Method {
			return a.Method < b.Method
		}
		return a.Status < b.Status
	})
	return r
}

// percentile is the nearest-rank percentile of sorted latencies.
func percentile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*percent + 99) / 100
	return sorted[rank-1]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (r report) writeJSON(out io.Writer) error { return json.NewEncoder(out).Encode(r) }

func (r report) writeText(out io.Writer) error {
	_, err := fmt.Fprintf(out, "%d requests in %.2f s, %d errors, latency p50 %.1f ms, p99 %.1f ms\n",
		r.Requests, r.Seconds, r.Errors, r.LatencyMS.P50, r.LatencyMS.P99)
	for _, row := range r.Rows {
		status := "none"
		if row.Status != 0 {
			status = strconv.Itoa(row.Status)
		}
		fmt.Fprintf(out, "  %-5s %-4s %-9s %4s %6d\n", row.Scheme, row.Method, row.Path, status, row.Count)
	}
	for _, failure := range r.Failures {
		fmt.Fprintln(out, "  failed:", failure)
	}
	return err
}
