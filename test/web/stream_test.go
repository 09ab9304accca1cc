package web_test

import (
	"testing"
)

// echoes sends messages over a WebSocket of the application that the page is of.
func echoes(t *testing.T, p *tab) {
	t.Helper()
	const script = `new Promise((resolve, reject) => {
		const sizes = [0, 1, 125, 126, 65535, 65536, 1 << 20], socket = new WebSocket("ws" + document.baseURI.slice(4) + "ws");
		let at = 0;
		const send = () => socket.send("é".repeat(sizes[at] / 2) + "x".repeat(sizes[at] % 2));
		socket.onopen = send;
		socket.onerror = () => reject(new Error("the WebSocket broke"));
		socket.onmessage = message => {
			if (new Blob([message.data]).size !== sizes[at]) reject(new Error("a message of " + sizes[at] + " bytes came back as " + message.data.length));
			else if (++at < sizes.length) send();
			else socket.close(4321, "done");
		};
		socket.onclose = close => resolve(at + " messages, then " + close.code + " " + close.reason);
	})`
	if got := eval[string](p, script); got != "7 messages, then 4321 done" {
		t.Errorf("the WebSocket: %s", got)
	}
}

func TestWebSocket(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, address func(int) string) {
		p := w.browser.newTab(t)
		p.open(address(appPort))
		echoes(t, p)
	})
}

// Each event of the clock, but the first, comes only when the page has said that it has the
// one before: whatever keeps events back keeps the test from its end.
func TestServerSentEvents(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, address func(int) string) {
		p := w.browser.newTab(t)
		p.open(address(appPort))
		const script = `new Promise((resolve, reject) => {
			const clock = new EventSource("clock?id=" + encodeURIComponent(document.baseURI)), got = [];
			const tick = n => fetch("tick?n=" + n + "&id=" + encodeURIComponent(document.baseURI)).catch(reject);
			clock.onerror = () => reject(new Error("the stream broke"));
			clock.onmessage = event => {
				got.push(event.data);
				if (got.length < 20) return tick(got.length);
				clock.close();
				tick("end").then(() => resolve(got.join(" ")));
			};
		})`
		if got := eval[string](p, script); got != "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19" {
			t.Errorf("the clock said %s", got)
		}
	})
}

// Large bodies go through both ways at once.
func TestLargeBodies(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, address func(int) string) {
		p := w.browser.newTab(t)
		p.open(address(appPort))
		const size = 20 << 20
		const script = `Promise.all([
			fetch("bytes?n=20971520").then(r => r.blob()).then(b => b.size),
			fetch("echo", {method: "POST", body: new Uint8Array(20971520)}).then(r => r.json()).then(seen => seen.received),
		])`
		if got := eval[[]int](p, script); len(got) != 2 || got[0] != size || got[1] != size {
			t.Errorf("of %d bytes each came %d", size, got)
		}
	})
}
