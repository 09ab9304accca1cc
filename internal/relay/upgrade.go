package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxInterim is how many informational answers may come before the real one.
const maxInterim = 5

// UpgradeProtocol is the protocol that a request asks to change to, empty when it does not
// or may not. To HTTP/2 it may not: in there nobody would look at the requests any more.
func UpgradeProtocol(r *http.Request) string {
	protocol := r.Header.Get("Upgrade")
	if !hasToken(r.Header["Connection"], "Upgrade") || r.ProtoMajor != 1 || !r.ProtoAtLeast(1, 1) || r.ContentLength != 0 {
		return ""
	}
	if len(r.Header["Upgrade"]) > 1 || strings.ContainsFunc(protocol, func(c rune) bool { return c <= ' ' || c > '~' || c == ',' }) {
		return "" // a list is a choice that the other side would have to make
	}
	name, _, _ := strings.Cut(protocol, "/")
	if strings.EqualFold(name, "h2c") || strings.EqualFold(name, "HTTP") {
		return ""
	}
	return protocol
}

// spelling is how the specification of WebSocket writes its headers. Some programs look for
// exactly that, and Go writes them otherwise.
var spelling = map[string]string{
	"Sec-Websocket-Key":        "Sec-WebSocket-Key",
	"Sec-Websocket-Version":    "Sec-WebSocket-Version",
	"Sec-Websocket-Protocol":   "Sec-WebSocket-Protocol",
	"Sec-Websocket-Extensions": "Sec-WebSocket-Extensions",
	"Sec-Websocket-Accept":     "Sec-WebSocket-Accept",
}

func spell(h http.Header) {
	for from, to := range spelling {
		if values, there := h[from]; there {
			delete(h, from)
			h[to] = values
		}
	}
}

// Upgrade is a request for another protocol that a server has answered.
type Upgrade struct {
	Response *http.Response
	conn     net.Conn
	reader   *bufio.Reader
	protocol string
}

// Ask sends out, which asks for a protocol, on a connection that is nobody else's, and reads
// the header of the answer, of at most maxHeader bytes. The connection is closed when it
// fails, and when ctx ends before the answer is there.
func Ask(ctx context.Context, conn net.Conn, out *http.Request, protocol string, maxHeader int64) (_ *Upgrade, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) }) // a closed one has ended already
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			Reset(conn)
		}
	}()
	out.Header.Set("Connection", "Upgrade")
	out.Header.Set("Upgrade", protocol)
	spell(out.Header)
	if err := out.Write(conn); err != nil {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader}
	reader := bufio.NewReader(limited)
	for range maxInterim {
		resp, err := http.ReadResponse(reader, out) //nolint:bodyclose // it ends with the connection
		if err != nil {
			return nil, errors.Join(context.Cause(ctx), err)
		}
		if resp.StatusCode < http.StatusOK && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		if resp.StatusCode == http.StatusSwitchingProtocols && !strings.EqualFold(resp.Header.Get("Upgrade"), protocol) {
			return nil, ErrUnasked
		}
		DropHopByHop(resp.Header)
		limited.N = math.MaxInt64 // what follows is not the header
		return &Upgrade{Response: resp, conn: conn, reader: reader, protocol: protocol}, nil
	}
	return nil, errInterim
}

// Drop gives up the answer of a server.
func (u *Upgrade) Drop() { Reset(u.conn) }

// Refused passes the answer of a server on that did not change protocols, until ctx ends.
func (u *Upgrade) Refused(ctx context.Context, w http.ResponseWriter) {
	stop := context.AfterFunc(ctx, u.Drop)
	defer stop()
	// Its own Close would read an answer to its end that nobody wants any more.
	u.Response.Body = &dropped{u.Response.Body, u}
	answer(w, u.Response, false)
}

// dropped is the body of an answer whose connection ends with it.
type dropped struct {
	io.Reader
	upgrade *Upgrade
}

func (d *dropped) Close() error {
	d.upgrade.Drop()
	return nil
}

// handshakeTime bounds how long a client may take to take the answer.
const handshakeTime = 30 * time.Second

// Accept passes the answer of a server on that has changed protocols, and connects it with
// w's client. From here on both connections are the tunnel's, which the caller runs. After
// an error there is nothing left.
func (u *Upgrade) Accept(w http.ResponseWriter) (_ *Tunnel, err error) {
	client, ahead, err := http.NewResponseController(w).Hijack()
	if err != nil {
		Reset(u.conn)
		return nil, err
	}
	t := &Tunnel{client: client, server: u.conn}
	defer func() {
		if err != nil {
			t.Cut()
		}
	}()
	if err := client.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, err
	}
	h := u.Response.Header
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", u.protocol)
	spell(h)
	// The writer's buffer is not needed any more after this.
	fmt.Fprintf(ahead, "HTTP/1.1 %d %s\r\n", u.Response.StatusCode, http.StatusText(u.Response.StatusCode))
	if err := h.Write(ahead); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(ahead, "\r\n"); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(ahead, u.reader, int64(u.reader.Buffered())); err != nil {
		return nil, err
	}
	if err := ahead.Flush(); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(u.conn, ahead, int64(ahead.Reader.Buffered())); err != nil {
		return nil, err
	}
	return t, client.SetDeadline(time.Time{})
}
