// The smallest service and client, for containers that are made FROM scratch.
//
//	tiny serve ADDRESS              answers every request with its environment variable NAME
//	tiny get URL [BEFORE [AFTER]]   one request, with pauses (a time.Duration) around it
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	if os.Args[1] == "serve" {
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getenv("NAME")) })
		fmt.Fprintln(os.Stderr, http.ListenAndServe(os.Args[2], nil))
		os.Exit(1)
	}
	pause(3)
	response, err := http.Get(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	io.Copy(os.Stdout, response.Body)
	response.Body.Close()
	pause(4)
}

func pause(argument int) {
	if len(os.Args) > argument {
		duration, err := time.ParseDuration(os.Args[argument])
		if err != nil {
			panic(err)
		}
		time.Sleep(duration)
	}
}
