// Command grpc_go is both ends of gRPC by grpc-go, and says on standard output
// what each end saw of a call: one JSON object a call.
//
//	grpc_go server -listen HOST:PORT [-certificate FILE -key FILE]
//	grpc_go client -connect HOST:PORT -plan FILE [-ca FILE] [-streams N] [-before N]
//
// The messages are plain text, the methods those of grpc_python.py, which says
// what each does.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

const (
	service    = "netprofiler.test.Probe"
	serverName = "localhost"
	patience   = 30 * time.Second
)

type options struct {
	listen, certificate, key string
	connect, plan, ca        string
	streams, before          int
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: grpc_go server|client [flags]"))
	}
	var o options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&o.listen, "listen", "", "server: HOST:PORT")
	flags.StringVar(&o.certificate, "certificate", "", "server: PEM; none: without TLS")
	flags.StringVar(&o.key, "key", "", "server: PEM")
	flags.StringVar(&o.connect, "connect", "", "client: HOST:PORT")
	flags.StringVar(&o.plan, "plan", "", "client: JSON, a list of calls")
	flags.StringVar(&o.ca, "ca", "", "client: PEM")
	flags.IntVar(&o.streams, "streams", 1, "client: calls at a time, all on one connection")
	flags.IntVar(&o.before, "before", 0, "client: after so many calls, say `open` and wait for a line")
	flags.Parse(os.Args[2:])
	var err error
	switch os.Args[1] {
	case "server":
		err = serve(o)
	case "client":
		err = callAll(o)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "grpc_go:", err)
	os.Exit(1)
}

// ---- what both ends share ----

// told is one call as one end saw it; sizes are of messages, as the program
// has them and (compressed) as they are sent.
type told struct {
	ID           string `json:"id"`
	Method       string `json:"method"`
	Sent         []int  `json:"sent"`
	Received     []int  `json:"received"`
	SentWire     []int  `json:"sent_wire"`
	ReceivedWire []int  `json:"received_wire"`
	Code         int    `json:"code"`
	Message      string `json:"message"`
	*handshake
}

type handshake struct {
	Version string `json:"version"`
	Cipher  string `json:"cipher"`
	SNI     string `json:"sni"`
	ALPN    string `json:"alpn"`
}

var telling sync.Mutex

func tell(t *told, err error, at *peer.Peer) {
	t.Code, t.Message = int(status.Code(err)), status.Convert(err).Message()
	if info, ok := at.AuthInfo.(credentials.TLSInfo); ok {
		t.handshake = &handshake{
			Version: map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}[info.State.Version],
			Cipher:  tls.CipherSuiteName(info.State.CipherSuite),
			SNI:     info.State.ServerName,
			ALPN:    info.State.NegotiatedProtocol,
		}
	}
	line, _ := json.Marshal(t)
	telling.Lock()
	defer telling.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

// text carries messages as they are.
type text struct{}

func (text) Name() string { return "text" }

func (text) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (text) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

type toldKey struct{}

// counting notes sizes in the told of the call's context.
type counting struct{}

func (counting) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	if ctx.Value(toldKey{}) != nil {
		return ctx
	}
	return context.WithValue(ctx, toldKey{}, newTold())
}

func newTold() *told {
	return &told{Sent: []int{}, Received: []int{}, SentWire: []int{}, ReceivedWire: []int{}}
}

func (counting) HandleRPC(ctx context.Context, s stats.RPCStats) {
	t := ctx.Value(toldKey{}).(*told)
	switch s := s.(type) {
	case *stats.InPayload:
		t.Received = append(t.Received, s.Length)
		t.ReceivedWire = append(t.ReceivedWire, s.CompressedLength)
	case *stats.OutPayload:
		t.Sent = append(t.Sent, s.Length)
		t.SentWire = append(t.SentWire, s.CompressedLength)
	}
}

func (counting) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (counting) HandleConn(context.Context, stats.ConnStats)                       {}

// pattern is that of harness/truth.py: it depends on the seed at every place.
func pattern(size int, seed string) []byte {
	var b bytes.Buffer
	for n := 0; b.Len() < size; n++ {
		fmt.Fprintf(&b, "%s:%06d\n", seed, n)
	}
	return b.Bytes()[:size]
}

// ---- server ----

func serve(o options) error {
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	settings := []grpc.ServerOption{
		grpc.ForceServerCodecV2(text{}), grpc.StatsHandler(counting{}), grpc.UnknownServiceHandler(handle),
	}
	if o.certificate != "" {
		secure, err := credentials.NewServerTLSFromFile(o.certificate, o.key)
		if err != nil {
			return err
		}
		settings = append(settings, grpc.Creds(secure))
	}
	fmt.Fprintf(os.Stderr, "listening %s %s\n", listener.Addr().Network(), listener.Addr())
	return grpc.NewServer(settings...).Serve(listener)
}

func handle(_ any, stream grpc.ServerStream) error {
	ctx := stream.Context()
	t := ctx.Value(toldKey{}).(*told)
	path, _ := grpc.MethodFromServerStream(stream)
	t.Method = path[strings.LastIndexByte(path, '/')+1:]
	incoming, _ := metadata.FromIncomingContext(ctx)
	t.ID = strings.Join(incoming.Get("x-call"), ",")
	if t.Method != "Fail" { // then its only header block is that of the trailers
		stream.SetHeader(metadata.Pairs("x-call", t.ID))
	}
	err := answer(t.Method, stream)
	at, _ := peer.FromContext(ctx)
	tell(t, err, at)
	return err
}

func answer(method string, stream grpc.ServerStream) error {
	var got []byte
	if method == "Chat" || method == "Collect" {
		count, total := 0, 0
		for {
			err := stream.RecvMsg(&got)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			count++
			total += len(got)
			if method == "Chat" {
				if err := send(stream, append(bytes.Clone(got), '!')); err != nil {
					return err
				}
			}
		}
		if method == "Chat" {
			return nil
		}
		return send(stream, fmt.Appendf(nil, "%d %d", count, total))
	}
	if err := stream.RecvMsg(&got); err != nil {
		return err
	}
	first, rest, _ := strings.Cut(string(got), " ")
	number, _ := strconv.Atoi(first)
	switch method {
	case "Unary":
		return send(stream, got)
	case "Produce":
		size, _ := strconv.Atoi(rest)
		for n := 0; n < number; n++ {
			if err := send(stream, pattern(size, strconv.Itoa(n))); err != nil {
				return err
			}
		}
		return nil
	case "Fail":
		return status.Error(codes.Code(number), rest)
	case "FailLate":
		for _, message := range []string{"one", "two"} {
			if err := send(stream, []byte(message)); err != nil {
				return err
			}
		}
		return status.Error(codes.Code(number), rest)
	case "Wait":
		if err := send(stream, []byte("started")); err != nil {
			return err
		}
		fallthrough
	case "Silent":
		<-stream.Context().Done()
		return status.FromContextError(stream.Context().Err()).Err()
	}
	return status.Error(codes.Unimplemented, "no such method")
}

func send(stream grpc.ServerStream, message []byte) error {
	return stream.SendMsg(&message)
}

// ---- client ----

type call struct {
	ID       string      `json:"id"`
	Method   string      `json:"method"`
	Send     []string    `json:"send"`
	Gzip     bool        `json:"gzip"`
	Deadline int         `json:"deadline_ms"`
	Cancel   int         `json:"cancel_after"` // responses
	Metadata [][2]string `json:"metadata"`
}

func callAll(o options) error {
	content, err := os.ReadFile(o.plan)
	if err != nil {
		return err
	}
	var plan []call
	if err := json.Unmarshal(content, &plan); err != nil {
		return err
	}
	secure := insecure.NewCredentials()
	if o.ca != "" {
		if secure, err = credentials.NewClientTLSFromFile(o.ca, serverName); err != nil {
			return err
		}
	}
	connection, err := grpc.NewClient("passthrough:///"+o.connect,
		grpc.WithTransportCredentials(secure), grpc.WithNoProxy(), grpc.WithStatsHandler(counting{}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(text{})))
	if err != nil {
		return err
	}
	defer connection.Close()
	for _, one := range plan[:o.before] {
		one.make(connection)
	}
	if o.before != 0 {
		fmt.Println("open")
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			return err
		}
	}
	left := make(chan call)
	var workers sync.WaitGroup
	for i := 0; i < o.streams; i++ {
		workers.Go(func() {
			for one := range left {
				one.make(connection)
			}
		})
	}
	for _, one := range plan[o.before:] {
		left <- one
	}
	close(left)
	workers.Wait()
	return nil
}

func (c call) make(connection *grpc.ClientConn) {
	t := newTold()
	t.ID, t.Method = c.ID, c.Method
	wait := patience
	if c.Deadline != 0 {
		wait = time.Duration(c.Deadline) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), toldKey{}, t), wait)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-call", c.ID)
	for _, pair := range c.Metadata {
		ctx = metadata.AppendToOutgoingContext(ctx, pair[0], pair[1])
	}
	at := &peer.Peer{}
	settings := []grpc.CallOption{grpc.Peer(at)}
	if c.Gzip {
		settings = append(settings, grpc.UseCompressor("gzip"))
		ctx = metadata.AppendToOutgoingContext(ctx, "x-gzip", "1")
	}
	path := "/" + service + "/" + c.Method
	var got []byte
	if c.Method == "Unary" || c.Method == "Fail" || c.Method == "Silent" {
		sent := []byte(c.Send[0])
		tell(t, connection.Invoke(ctx, path, &sent, &got, settings...), at)
		return
	}
	err := c.stream(ctx, cancel, connection, path, settings)
	tell(t, err, at)
}

func (c call) stream(
	ctx context.Context, cancel func(), connection *grpc.ClientConn, path string, settings []grpc.CallOption,
) error {
	description := &grpc.StreamDesc{ServerStreams: c.Method != "Collect", ClientStreams: c.Method == "Collect" || c.Method == "Chat"}
	stream, err := connection.NewStream(ctx, description, path, settings...)
	if err != nil {
		return err
	}
	var got []byte
	for n, message := range c.Send {
		sent := []byte(message)
		if err := stream.SendMsg(&sent); err != nil {
			return err
		}
		if c.Method == "Chat" {
			if err := stream.RecvMsg(&got); err != nil {
				return err
			}
			if c.Cancel == n+1 {
				cancel()
			}
		}
	}
	if c.Cancel == 0 || c.Method != "Chat" {
		if err := stream.CloseSend(); err != nil {
			return err
		}
	}
	for received := 1; ; received++ {
		if err := stream.RecvMsg(&got); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if c.Cancel == received {
			cancel()
		}
		if !description.ServerStreams {
			return nil
		}
	}
}
