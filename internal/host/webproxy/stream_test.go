package webproxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/relay/relaytest"
)

// Events arrive one by one while the answer goes on, and the header before the first.
func TestEventsAreFlushedAtOnce(t *testing.T) {
	next := make(chan string)
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case event, more := <-next:
				if !more {
					return
				}
				_, _ = io.WriteString(w, event)
			case <-r.Context().Done():
				return
			}
		}
	}), Config{})
	resp := b.get("/events") // comes back with nothing but a header written
	for i := range 5 {
		event := fmt.Sprintf("data: %d\n\n", i)
		next <- event
		got := make([]byte, len(event))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != event {
			t.Fatalf("event %d: %q, %v", i, got, err)
		}
	}
	close(next)
	if rest := b.text(resp); rest != "" {
		t.Errorf("left over: %q", rest)
	}
}

// The application answers each piece of an upload before the next one is sent.
func TestBodiesFlowBothWaysAtOnce(t *testing.T) {
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(bytes.ToUpper(buf[:n]))
			_ = rc.Flush()
			if err != nil {
				return
			}
		}
	}), Config{})
	for _, framing := range []string{"Transfer-Encoding: chunked", "Content-Length: 9"} {
		chunked := strings.HasPrefix(framing, "T")
		c, answer := b.raw("POST PREFIX/up HTTP/1.1\r\nHost: h\r\n" + framing + "\r\nConnection: close\r\n\r\n")
		var body io.Reader
		for i, piece := range []string{"one", "two", "six"} {
			send := piece
			if chunked {
				send = "3\r\n" + piece + "\r\n"
			}
			if _, err := io.WriteString(c, send); err != nil {
				t.Fatal(err)
			}
			if !chunked {
				// The first piece waits in the transport until there is more, or it ends.
				continue
			}
			if i == 0 {
				resp, err := http.ReadResponse(answer, nil)
				if err != nil {
					t.Fatal(err)
				}
				body = resp.Body
			}
			got := make([]byte, len(piece))
			if _, err := io.ReadFull(body, got); err != nil || string(got) != strings.ToUpper(piece) {
				t.Fatalf("%s, piece %d: %q, %v", framing, i, got, err)
			}
		}
		if chunked {
			if _, err := io.WriteString(c, "0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			continue
		}
		resp, err := http.ReadResponse(answer, nil)
		if err != nil || b.text(resp) != "ONETWOSIX" {
			t.Errorf("%s: %v", framing, err)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	}), Config{})
	const head = " HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	c, answer := b.raw("POST PREFIX/take" + head)
	resp, err := http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != http.StatusContinue {
		t.Fatal(resp, err)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	resp, err = http.ReadResponse(answer, nil)
	if err != nil || b.text(resp) != "hello" {
		t.Fatal(resp, err)
	}
	// Who is refused needs not to send anything.
	_, answer = b.raw("POST PREFIX/refuse" + head)
	resp, err = http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Fatal(resp, err)
	}
}

// A server that knows nothing of Expect gets the body after a moment.
func TestExpectWithoutContinue(t *testing.T) {
	b := withRaw(t, Config{}, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\n%s", body)
	})
	r := b.request(http.MethodPost, "/", strings.NewReader("hello"))
	r.Header.Set("Expect", "100-continue")
	if got := b.text(b.do(r)); got != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestHeadRangeAndNotModified(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "x.txt", at, strings.NewReader("0123456789"))
	}), Config{})
	resp := b.do(b.request(http.MethodHead, "/", http.NoBody))
	if resp.ContentLength != 10 || b.text(resp) != "" {
		t.Errorf("HEAD: %v", resp)
	}
	r := b.request(http.MethodGet, "/", http.NoBody)
	r.Header.Set("Range", "bytes=2-4")
	resp = b.do(r)
	if resp.StatusCode != http.StatusPartialContent || resp.Header.Get("Content-Range") != "bytes 2-4/10" || b.text(resp) != "234" {
		t.Errorf("range: %v", resp)
	}
	r = b.request(http.MethodGet, "/", http.NoBody)
	r.Header.Set("If-Modified-Since", at.Format(http.TimeFormat))
	if resp = b.do(r); resp.StatusCode != http.StatusNotModified || b.text(resp) != "" {
		t.Errorf("not modified: %v", resp)
	}
}

func TestTrailersPassBothWays(t *testing.T) {
	seen := make(chan string, 2)
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/announced" {
			w.Header().Set("Trailer", "Grpc-Status")
		}
		_, _ = io.Copy(io.Discard, r.Body)
		seen <- r.Trailer.Get("X-Sum")
		_, _ = io.WriteString(w, "body")
		_ = http.NewResponseController(w).Flush()
		if r.URL.Path == "/announced" {
			w.Header().Set("Grpc-Status", "0")
		} else {
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		}
	}), Config{})
	for _, path := range []string{"/announced", "/sudden"} {
		pr, pw := io.Pipe()
		r := b.request(http.MethodPost, path, pr)
		r.Trailer = http.Header{"X-Sum": nil}
		go func() {
			_, _ = io.WriteString(pw, "data")
			r.Trailer.Set("X-Sum", "42")
			pw.Close()
		}()
		resp := b.do(r)
		if got := b.text(resp); got != "body" || resp.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("%s: %q with trailer %v", path, got, resp.Trailer)
		}
		if sum := <-seen; sum != "42" {
			t.Errorf("%s: the trailer of the request arrived as %q", path, sum)
		}
	}
}

func TestEarlyHintsPass(t *testing.T) {
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</x.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "done")
	}), Config{})
	_, answer := b.raw("GET PREFIX/ HTTP/1.1\r\nHost: h\r\n\r\n")
	resp, err := http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != http.StatusEarlyHints || resp.Header.Get("Link") != "</x.css>" {
		t.Fatal(resp, err)
	}
	resp, err = http.ReadResponse(answer, nil)
	if err != nil || b.text(resp) != "done" || resp.Header.Get("Link") != "" {
		t.Fatal(resp, err)
	}
	_, answer = b.raw("GET PREFIX/ HTTP/1.0\r\nHost: h\r\n\r\n")
	if resp, err = http.ReadResponse(answer, nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal("HTTP/1.0:", resp, err)
	}
}

// Bodies of any size pass through a little memory.
func TestHugeBodiesNeedLittleMemory(t *testing.T) {
	size := int64(10 << 30)
	if testing.Short() {
		size = 256 << 20
	}
	const allowed = 32 << 20 // bytes of heap, for all of client, proxy and application
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r.Body}, make([]byte, 1<<20))
			fmt.Fprint(w, n, err)
			return
		}
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, &relaytest.Zeros{Left: size}, make([]byte, 1<<20))
	}), Config{})
	var most uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
			select {
			case <-tick.C:
			case <-stop:
				tick.Stop()
				return
			}
		}
	}()
	began := time.Now()
	resp := b.get("/down")
	n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{resp.Body}, make([]byte, 1<<20))
	if n != size || err != nil {
		t.Errorf("down: %d bytes, %v", n, err)
	}
	down := time.Since(began)
	began = time.Now()
	r := b.request(http.MethodPost, "/up", io.NopCloser(&relaytest.Zeros{Left: size}))
	r.ContentLength = size
	if got := b.text(b.do(r)); got != fmt.Sprint(size, nil) && got != fmt.Sprint(size, " ", nil) {
		t.Errorf("up: %s", got)
	}
	close(stop)
	<-stopped
	t.Logf("%d MiB: down in %v, up in %v, at most %d KiB of heap", size>>20, down, time.Since(began), most>>10)
	if most > allowed {
		t.Errorf("the heap grew to %d bytes", most)
	}
}

// An answer of HTTP/1.0 ends with its connection.
func TestAnswersWithoutALength(t *testing.T) {
	b := withRaw(t, Config{}, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\nContent-Type: text/x\r\n\r\nall of it")
		}
	})
	if got := b.text(b.get("/")); got != "all of it" {
		t.Errorf("got %q", got)
	}
}

// What breaks off does not look complete.
func TestBrokenAnswersLookBroken(t *testing.T) {
	answers := map[string]string{
		"/length": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome",
		"/chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
		"/wrong":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\nzz\r\n",
	}
	b := withRaw(t, Config{}, func(c net.Conn, r *bufio.Reader) {
		if req, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, answers[req.URL.Path])
		}
	})
	for path := range maps.Keys(answers) {
		resp := b.get(path)
		got, err := io.ReadAll(resp.Body)
		if err == nil || string(got) != "some" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}

// An upload that its client gives up ends at the application, too, and not as if complete.
func TestUploadsThatBreakOff(t *testing.T) {
	ended := make(chan error, 1)
	b := withApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	}), Config{})
	for _, head := range []string{"Content-Length: 100000\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"} {
		c, _ := b.raw("POST PREFIX/ HTTP/1.1\r\nHost: h\r\n" + head)
		eventually(t, "the request is under way", func() bool {
			b.proxy.mu.Lock()
			defer b.proxy.mu.Unlock()
			return b.proxy.guests[id] != nil
		})
		c.Close()
		select {
		case err := <-ended:
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%q: the body ended with %v", head, err)
			}
		case <-time.After(patience):
			t.Errorf("%q: the application still waits", head)
		}
	}
}
