package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/api"
)

const (
	// serverPort is where this program listens in the sandbox.
	serverPort = 8000
	// piece is what the server writes at once, in bytes.
	piece = 64 << 10
	// paceEvery is how often a paced download gets its share.
	paceEvery = 20 * time.Millisecond
	// headerLimit bounds how long a client may take for its header.
	headerLimit = 10 * time.Second
	// programPath is where this program is in the sandbox.
	programPath = "/tmp/bench-proxy"
)

// serve is what runs in the sandbox.
func serve(ctx context.Context, address string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"ok"}`) // a client that is gone misses nothing
	})
	mux.HandleFunc("GET /bytes", bulk)
	mux.HandleFunc("GET /download", paced)
	mux.HandleFunc("GET /ws", echo)
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: headerLimit}
	go func() {
		<-ctx.Done()
		_ = server.Close() // the process ends
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// bulk sends n bytes as fast as it can.
func bulk(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.FormValue("n")) // 0 is as good
	w.Header().Set("Content-Length", strconv.Itoa(n))
	buffer := make([]byte, piece)
	for ; n > 0; n -= piece {
		if _, err := w.Write(buffer[:min(n, piece)]); err != nil {
			return
		}
	}
}

// paced sends rate bytes a second until the client goes away.
func paced(w http.ResponseWriter, r *http.Request) {
	rate, _ := strconv.Atoi(r.FormValue("rate"))
	share := make([]byte, int(float64(rate)*paceEvery.Seconds()))
	flush := http.NewResponseController(w).Flush
	// Those who begin together do not go on together: nobody's disk or network would.
	select {
	case <-r.Context().Done():
		return
	case <-time.After(rand.N(paceEvery)):
	}
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	for {
		if _, err := w.Write(share); err != nil || flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// echo sends back every message of a WebSocket.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return // it has been answered
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}

// start makes the sandbox, brings this very program into it and waits until it serves.
func (b *bench) start(ctx context.Context) error {
	request := api.CreateSandboxRequest{Vcpus: sandboxCPUs, MemoryMb: sandboxMemory}
	if err := b.server.Do(ctx, http.MethodPost, "/v1/sandboxes", request, &b.sandbox); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.Open(self)
	if err != nil {
		return err
	}
	defer program.Close()
	at := "/v1/sandboxes/" + b.sandbox.ID
	if err := b.server.Do(ctx, http.MethodPost, at+"/files/write?path="+url.QueryEscape(programPath), program, nil); err != nil {
		return err
	}
	if _, err := b.server.Exec(ctx, b.sandbox.ID, "chmod", "+x", programPath); err != nil {
		return err
	}
	command := api.ExecRequest{Cmd: programPath, Args: []string{"-serve", fmt.Sprintf("0.0.0.0:%d", serverPort)}, Background: true}
	if err := b.server.Do(ctx, http.MethodPost, at+"/exec", command, nil); err != nil {
		return err
	}
	return awaitAnswer(ctx, b.direct()+"/ping")
}

// direct is the server's address without a proxy.
func (b *bench) direct() string { return fmt.Sprintf("http://%s:%d", b.sandbox.GuestIP, serverPort) }

// prefix is the path under which the server is where ports are by path.
func (b *bench) prefix() string { return fmt.Sprintf("/proxy/%s/%d", b.sandbox.ID, serverPort) }

// proxied is the server's address by way of Wrenn.
func (b *bench) proxied() string { return "http://" + b.paths + b.prefix() }
