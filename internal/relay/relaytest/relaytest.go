// Package relaytest is what every hop of HTTP must let pass, for the tests of those that are
// made with package relay. It must not know where a hop is or what it adds.
package relaytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// patience bounds what should come at once.
	patience = 30 * time.Second

	// bodySize is that of a large body, and heapLimit what client, hop and server together
	// may have in memory meanwhile, in bytes.
	bodySize  = 300 << 20
	heapLimit = 32 << 20
	// pieceSize is in what pieces the ends handle it, and lookEvery how often they look at
	// the memory, in bytes.
	pieceSize = 1 << 20
	lookEvery = 16 << 20
)

// Serve puts a server behind a hop. It returns the address, without a slash at its end, at
// which a client finds the server through the hop.
type Serve func(t *testing.T, server http.Handler) (address string, client *http.Client)

// Run runs all tests on a hop.
func Run(t *testing.T, serve Serve) {
	for name, test := range map[string]func(*testing.T, Serve){
		"GRPCWeb": testGRPCWeb, "HeadAndRange": testHeadAndRange, "Trailers": testTrailers, "LargeBodies": testLargeBodies, "ExpectContinue": testExpect,
	} {
		t.Run(name, func(t *testing.T) { test(t, serve) })
	}
}

type text = wrapperspb.StringValue

const (
	unaryProcedure  = "/test.Service/Upper"
	streamProcedure = "/test.Service/Count"
	messages        = 5
)

// testGRPCWeb calls a real gRPC-Web service with a real client. Its trailers are the end of
// the body, where a hop must neither keep them back nor take the body for complete before.
func testGRPCWeb(t *testing.T, serve Serve) {
	received := make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle(unaryProcedure, connect.NewUnaryHandler(unaryProcedure, func(_ context.Context, r *connect.Request[text]) (*connect.Response[text], error) {
		answer := connect.NewResponse(wrapperspb.String(strings.ToUpper(r.Msg.GetValue()) + r.Header().Get("X-Mine")))
		answer.Trailer().Set("X-Sum", "7")
		return answer, nil
	}))
	mux.Handle(streamProcedure, connect.NewServerStreamHandler(streamProcedure, func(ctx context.Context, _ *connect.Request[text], s *connect.ServerStream[text]) error {
		for i := range messages {
			if err := s.Send(wrapperspb.String(fmt.Sprint(i))); err != nil {
				return err
			}
			select { // the client has it before there is another
			case <-received:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		s.ResponseTrailer().Set("X-Sum", "10")
		return errors.New("that is all: ü")
	}))
	address, client := serve(t, mux)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	unary := connect.NewClient[text, text](client, address+unaryProcedure, connect.WithGRPCWeb())
	request := connect.NewRequest(wrapperspb.String("hello"))
	request.Header().Set("X-Mine", "!")
	answer, err := unary.CallUnary(ctx, request)
	if err != nil || answer.Msg.GetValue() != "HELLO!" || answer.Trailer().Get("X-Sum") != "7" {
		t.Fatalf("a call: %v, %v", answer, err)
	}
	counter := connect.NewClient[text, text](client, address+streamProcedure, connect.WithGRPCWeb())
	stream, err := counter.CallServerStream(ctx, connect.NewRequest(wrapperspb.String("")))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for i := range messages {
		if !stream.Receive() || stream.Msg().GetValue() != fmt.Sprint(i) {
			t.Fatalf("message %d: %v, %v", i, stream.Msg(), stream.Err())
		}
		received <- struct{}{}
	}
	var status *connect.Error
	if stream.Receive() || !errors.As(stream.Err(), &status) || status.Code() != connect.CodeUnknown || status.Message() != "that is all: ü" {
		t.Errorf("the stream ended with %v", stream.Err())
	}
	if sum := stream.ResponseTrailer().Get("X-Sum"); sum != "10" {
		t.Errorf("the trailer is %q", sum)
	}
}

// received is an answer, whole.
type received struct {
	status int
	length int64
	header http.Header
	body   string
}

// send makes a request and returns its answer, which must not be large.
func send(t *testing.T, client *http.Client, method, address string, body io.Reader, headers ...string) received {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return received{answer.StatusCode, answer.ContentLength, answer.Header, string(all)}
}

func testHeadAndRange(t *testing.T, serve Serve) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	address, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "digits.txt", at, strings.NewReader("0123456789"))
	}))
	got := send(t, client, http.MethodHead, address+"/", http.NoBody)
	if got.status != http.StatusOK || got.length != 10 || got.body != "" {
		t.Errorf("HEAD: %+v", got)
	}
	got = send(t, client, http.MethodGet, address+"/", http.NoBody, "Range", "bytes=2-4")
	if got.status != http.StatusPartialContent || got.header.Get("Content-Range") != "bytes 2-4/10" || got.body != "234" {
		t.Errorf("a range: %+v", got)
	}
	got = send(t, client, http.MethodGet, address+"/", http.NoBody, "Range", "bytes=0-0,8-")
	if got.status != http.StatusPartialContent || !strings.HasPrefix(got.header.Get("Content-Type"), "multipart/byteranges") || !strings.Contains(got.body, "89") {
		t.Errorf("two ranges: %+v", got)
	}
	got = send(t, client, http.MethodGet, address+"/", http.NoBody, "Range", "bytes=2-4", "If-Range", `"two"`)
	if got.status != http.StatusOK || got.body != "0123456789" {
		t.Errorf("a range of what has changed: %+v", got)
	}
	got = send(t, client, http.MethodGet, address+"/", http.NoBody, "Range", "bytes=20-")
	if got.status != http.StatusRequestedRangeNotSatisfiable || got.header.Get("Content-Range") != "bytes */10" {
		t.Errorf("a range beyond the end: %+v", got)
	}
	got = send(t, client, http.MethodGet, address+"/", http.NoBody, "If-None-Match", `"one"`)
	if got.status != http.StatusNotModified || got.body != "" {
		t.Errorf("not modified: %+v", got)
	}
}

// testTrailers sends one with a body and gets one back, announced and not.
func testTrailers(t *testing.T, serve Serve) {
	address, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		_, _ = io.Copy(io.Discard, r.Body) // what is lacking shows in the trailer
		_, _ = io.WriteString(w, "body")
		w.Header().Set("X-Announced", r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"X-Sudden", "yes")
	}))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	body, sent := io.Pipe()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address+"/", body)
	if err != nil {
		t.Fatal(err)
	}
	request.Trailer = http.Header{"X-Sum": nil}
	go func() {
		_, _ = io.WriteString(sent, "data")
		request.Trailer.Set("X-Sum", "42")
		_ = sent.Close() // never fails
	}()
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	if err != nil || string(all) != "body" || answer.Trailer.Get("X-Announced") != "42" || answer.Trailer.Get("X-Sudden") != "yes" {
		t.Errorf("%q, %v, trailer %v", all, err, answer.Trailer)
	}
}

// testExpect sends a body only when the server wants it.
func testExpect(t *testing.T, serve Serve) {
	address, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		_, _ = io.Copy(w, r.Body)
	}))
	if transport, ok := client.Transport.(*http.Transport); ok {
		transport.ExpectContinueTimeout = patience // it waits for the word
	}
	if got := send(t, client, http.MethodPut, address+"/take", strings.NewReader("hello"), "Expect", "100-continue"); got.status != http.StatusOK || got.body != "hello" {
		t.Errorf("%+v", got)
	}
	unsent := &Zeros{pieceSize}
	if got := send(t, client, http.MethodPut, address+"/refuse", unsent, "Expect", "100-continue"); got.status != http.StatusExpectationFailed {
		t.Errorf("%+v", got)
	}
	if unsent.Left != pieceSize {
		t.Errorf("%d bytes were sent that nobody wanted", pieceSize-unsent.Left)
	}
}

// Zeros is a body of so many bytes that is nowhere.
type Zeros struct{ Left int64 }

// Read implements io.Reader.
func (z *Zeros) Read(p []byte) (int, error) {
	if z.Left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.Left)
	z.Left -= n
	return int(n), nil
}

// drain reads a body to its end, looks at the memory now and then, and returns how much came
// and the most memory that was in use.
func drain(body io.Reader) (n int64, heap uint64, err error) {
	buf := make([]byte, pieceSize)
	for next := int64(0); ; {
		got, err := body.Read(buf)
		n += int64(got)
		if n >= next {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			heap, next = max(heap, m.HeapInuse), n+lookEvery
		}
		if errors.Is(err, io.EOF) {
			return n, heap, nil
		}
		if err != nil {
			return n, heap, err
		}
	}
}

// testLargeBodies sends one up and one down, of which no hop may hold more than a little.
func testLargeBodies(t *testing.T, serve Serve) {
	address, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.CopyBuffer(struct{ io.Writer }{w}, &Zeros{bodySize}, make([]byte, pieceSize))
			return
		}
		n, heap, err := drain(r.Body)
		fmt.Fprint(w, n, heap, err)
	}))
	runtime.GC()
	for _, size := range []int64{bodySize, -1} { // with a length and in chunks
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address+"/", io.NopCloser(&Zeros{bodySize}))
		if err != nil {
			t.Fatal(err)
		}
		request.ContentLength = size
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		var heap uint64
		_, err = fmt.Fscan(answer.Body, &n, &heap)
		_ = answer.Body.Close() // all of it that counts was read
		if err != nil || n != bodySize || heap > heapLimit {
			t.Errorf("up, length %d: %d bytes came, with at most %d in memory, %v", size, n, heap, err)
		}
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if n, heap, err := drain(answer.Body); err != nil || n != bodySize || heap > heapLimit {
		t.Errorf("down: %d bytes came, with at most %d in memory, %v", n, heap, err)
	} else {
		t.Logf("%d MiB each way, at most %d KiB in memory", bodySize>>20, heap>>10)
	}
}
