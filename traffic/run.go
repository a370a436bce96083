package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// requestTimeout is far more than any answer here takes.
const requestTimeout = 30 * time.Second

// job is one request to send.
type job struct {
	number int
	scheme scheme
}

// run sends cfg.requests requests each way over cfg.concurrency connections that
// are kept open. When ctx ends it starts no more, and waits for those in flight.
func run(ctx context.Context, cfg config, trust *tls.Config) *summary {
	transport := &http.Transport{ // no Proxy: the environment's is not meant for this
		MaxIdleConnsPerHost: cfg.concurrency,
		MaxConnsPerHost:     cfg.concurrency,
		// With a TLSClientConfig, and no ForceAttemptHTTP2, it speaks HTTP/1.1 and offers no protocol by ALPN.
		TLSClientConfig: trust,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: requestTimeout}

	result := newSummary()
	jobs := make(chan job)
	var workers sync.WaitGroup
	for i := 0; i < cfg.concurrency; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for j := range jobs {
				c := callFor(j.number, cfg.seed)
				result.add(j.scheme, c, send(client, string(j.scheme)+"://"+cfg.address(j.scheme), c))
			}
		}()
	}
	dispatch(ctx, cfg, jobs)
	workers.Wait()
	result.finish()
	return result
}

// dispatch hands out the requests, cfg.delay apart, each in plaintext and then
// over TLS.
func dispatch(ctx context.Context, cfg config, jobs chan<- job) {
	defer close(jobs)
	delay := time.Duration(0) // none before the first
	for i := 0; i < cfg.requests; i++ {
		for _, s := range cfg.schemes() {
			if !pause(ctx, delay) {
				return
			}
			delay = cfg.delay
			select {
			case jobs <- job{i, s}:
			case <-ctx.Done():
				return
			}
		}
	}
}

// pause waits, and reports false when ctx ended meanwhile.
func pause(ctx context.Context, delay time.Duration) bool {
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// outcome is what became of one request.
type outcome struct {
	status       int // 0 when there was no answer
	responseBody int64
	took         time.Duration
	err          error
}

func send(client *http.Client, origin string, c call) outcome {
	request, err := c.request(origin)
	if err != nil {
		return outcome{err: err}
	}
	start := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return outcome{err: err, took: time.Since(start)}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	o := outcome{status: response.StatusCode, responseBody: int64(len(body)), took: time.Since(start)}
	if err != nil {
		o.err = fmt.Errorf("body: %w", err)
	} else {
		o.err = c.check(o.status, string(body), o.took)
	}
	return o
}
