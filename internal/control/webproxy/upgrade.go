package webproxy

import (
	"context"
	"net/http"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/relay"
)

const (
	// upgradeTime bounds the time until an application has agreed to another protocol.
	upgradeTime = 60 * time.Second
	// maxUpgradeHeader bounds the header of its answer, in bytes. The host agent's bound on
	// what a guest may send is below it.
	maxUpgradeHeader = 1 << 20
)

// upgrade passes on a request that asks for another protocol. It reports whether the visit
// goes on as a connection, which then ends it. Who calls it may return, and give up all that
// the request held.
func (e *Edge) upgrade(w http.ResponseWriter, in *http.Request, x *exchange, protocol string) bool {
	ctx, cancel := context.WithTimeout(in.Context(), upgradeTime)
	defer cancel()
	conn, err := e.host.Dial(ctx)
	if err != nil {
		e.failed(w, in, x, err)
		return false
	}
	up, err := relay.Ask(ctx, conn, x.direct(in), protocol, maxUpgradeHeader)
	if err != nil {
		e.failed(w, in, x, err)
		return false
	}
	if x.isPaused(up.Response.Header) {
		up.Drop()
		return false
	}
	x.note(up.Response.StatusCode)
	x.finish(up.Response.Header)
	if up.Response.StatusCode != http.StatusSwitchingProtocols {
		up.Refused(in.Context(), w)
		finishTrailer(w.Header())
		return false
	}
	tunnel, err := up.Accept(w)
	if err != nil {
		return false // nobody is left who could be told
	}
	v, gu := x.visit, x.visit.guest
	tunnel.Run(func(up, down int) {
		gu.stats.received.Add(int64(up))
		gu.stats.sent.Add(int64(down))
		x.moved()
	}, v.leave)
	if !v.changeCut(func(error) { tunnel.Cut() }) {
		tunnel.Cut() // it was cut meanwhile, or has ended
	}
	return true
}
