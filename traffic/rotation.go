package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"net/http"
	"time"
)

// slowMS is what /slow is asked to wait.
const slowMS = 20

// call is one request to send and what its answer must be.
type call struct {
	method   string
	path     string
	query    string
	body     []byte // nil for a GET
	wantBody string
	least    time.Duration // no answer can come sooner
}

// rotation is what request number 0, 1, 2… does, over and over: a GET and a POST
// to each of the four paths.
var rotation = []struct {
	method, path string
}{
	{http.MethodGet, "/"},
	{http.MethodPost, "/echo"},
	{http.MethodGet, "/healthz"},
	{http.MethodPost, "/slow"},
	{http.MethodGet, "/echo"},
	{http.MethodPost, "/"},
	{http.MethodGet, "/slow"},
	{http.MethodPost, "/healthz"},
}

// callFor makes request number i. It depends on nothing but i and seed, in
// whatever order the requests are sent.
func callFor(i int, seed int64) call {
	step := rotation[i%len(rotation)]
	c := call{method: step.method, path: step.path}
	random := rand.New(rand.NewSource(seed + int64(i)))
	if c.method == http.MethodPost {
		c.body, _ = json.Marshal(struct { // of plain fields: it cannot fail
			Message string `json:"message"`
			Number  int    `json:"number"`
			Tag     string `json:"tag"`
		}{"hello", i, fmt.Sprintf("%08x", random.Uint32())})
	}
	switch c.path {
	case "/":
		c.wantBody = fmt.Sprintf(`{"message":"hello","received_bytes":%d}`+"\n", len(c.body))
	case "/healthz":
		c.wantBody = `{"status":"ok"}` + "\n"
	case "/slow":
		c.query = fmt.Sprintf("ms=%d", slowMS)
		c.wantBody = fmt.Sprintf(`{"slept_ms":%d}`+"\n", slowMS)
		c.least = slowMS * time.Millisecond
	case "/echo":
		if c.body == nil {
			c.query = fmt.Sprintf("message=hello&number=%d&tag=%08x", i, random.Uint32())
			c.wantBody = c.query
		} else {
			c.wantBody = string(c.body)
		}
	}
	return c
}

func (c call) request(origin string) (*http.Request, error) {
	target := origin + c.path
	if c.query != "" {
		target += "?" + c.query
	}
	request, err := http.NewRequest(c.method, target, bytes.NewReader(c.body))
	if err == nil && c.body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	return request, err
}

// check compares an answer with what it must be.
func (c call) check(status int, body string, took time.Duration) error {
	switch {
	case status != http.StatusOK:
		return fmt.Errorf("status %d", status)
	case body != c.wantBody:
		return fmt.Errorf("body %.100q, not %.100q", body, c.wantBody)
	case took < c.least:
		return fmt.Errorf("answered after %v, before the %v asked for", took, c.least)
	}
	return nil
}
