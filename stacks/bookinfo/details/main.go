// Details of a product, over TLS.
package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	address := ":" + value("PORT", "9443")
	certificate, err := selfSigned("details", "localhost")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr:              address,
		Handler:           http.HandlerFunc(serve),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
	}
	log.Printf("details listens on %s", address)
	log.Fatal(server.ListenAndServeTLS("", ""))
}

func value(name, otherwise string) string {
	if text := os.Getenv(name); text != "" {
		return text
	}
	return otherwise
}

func serve(w http.ResponseWriter, r *http.Request) {
	status := http.StatusNotFound
	content := map[string]any{"error": "there is no such product"}
	if strings.HasPrefix(r.URL.Path, "/details/") {
		status = http.StatusOK
		content = map[string]any{"id": 0, "author": "William Shakespeare", "year": 1595, "pages": 200}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(content)
	fmt.Printf("{\"service\":\"details\",\"method\":%q,\"path\":%q,\"status\":%d}\n", r.Method, r.URL.Path, status)
}
