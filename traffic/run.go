package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// requestTimeout is far more than any answer here takes.
const requestTimeout = 30 * time.Second

// run sends cfg.requests requests over cfg.concurrency connections that are kept
// open. When ctx ends it starts no more, and waits for those in flight.
func run(ctx context.Context, cfg config) *summary {
	transport := &http.Transport{ // no Proxy: the environment's is not meant for this
		MaxIdleConnsPerHost: cfg.concurrency,
		MaxConnsPerHost:     cfg.concurrency,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: requestTimeout}

	result := newSummary()
	numbers := make(chan int)
	var workers sync.WaitGroup
	for i := 0; i < cfg.concurrency; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := range numbers {
				c := callFor(number, cfg.seed)
				result.add(c, send(client, cfg.address(), c))
			}
		}()
	}
	dispatch(ctx, cfg, numbers)
	workers.Wait()
	result.finish()
	return result
}

// dispatch hands out the numbers of the requests, cfg.delay apart.
func dispatch(ctx context.Context, cfg config, numbers chan<- int) {
	defer close(numbers)
	for i := 0; i < cfg.requests && ctx.Err() == nil; i++ {
		select {
		case numbers <- i:
		case <-ctx.Done():
			return
		}
		if cfg.delay == 0 || i == cfg.requests-1 {
			continue
		}
		select {
		case <-time.After(cfg.delay):
		case <-ctx.Done():
		}
	}
}

// outcome is what became of one request.
type outcome struct {
	status       int // 0 when there was no answer
	responseBody int64
	took         time.Duration
	err          error
}

func send(client *http.Client, address string, c call) outcome {
	request, err := c.request(address)
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
