package web_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/api"
)

// A page of a private sandbox is for those who have a link, once.
func TestPrivateSandbox(t *testing.T) {
	w := theWorld(t)
	private := false
	id := w.create(t, api.CreateSandboxRequest{AllowPublicTraffic: &private})
	base := w.byName(id, appPort)
	p := w.browser.newTab(t)
	if status := p.open(base); status != http.StatusForbidden || !strings.Contains(p.text(), "wrenn open "+id+" 8000") {
		t.Fatalf("without a link: %d %s", status, p.text())
	}
	p.picture()
	if status := p.open(w.byPath(id, appPort)); status != http.StatusForbidden {
		t.Errorf("without a link, by path: %d", status)
	}

	var link api.PortLink
	if err := w.server.Do(t.Context(), http.MethodPost, "/v1/sandboxes/"+id+"/ports/8000/link", nil, &link); err != nil {
		t.Fatal(err)
	}
	p.open(link.URL)
	p.at(base) // the link's secret is in no address that a page could tell others
	echoes(t, p)
	p.open(base + "redirect?to=root&code=302")
	p.at(base + "landed?from=root")
	if cookies := landed(p).Headers["cookie"]; cookies != nil {
		t.Errorf("the application sees %q", cookies)
	}
	if got := eval[string](p, "document.cookie"); got != "" {
		t.Errorf("the page sees %q", got)
	}
	if status := p.open(w.byName(id, filesPort)); status != http.StatusForbidden {
		t.Errorf("the link is good for another port: %d", status)
	}
	p.open(link.URL) // who used it may come by it again
	p.at(base)

	stranger := w.browser.newTab(t)
	if status := stranger.open(link.URL); status != http.StatusForbidden && status != http.StatusNotFound && status != http.StatusGone {
		t.Errorf("a link that was used: %d %s", status, stranger.text())
	}
	if status := stranger.open(base); status != http.StatusForbidden {
		t.Errorf("after a link that was used: %d", status)
	}
}

// What a person sees when there is nothing to see says what to do.
func TestProblemPages(t *testing.T) {
	w := theWorld(t)
	id, err := w.server.Create(t.Context(), api.CreateSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	page := func(name, address, says string) {
		t.Run(name, func(t *testing.T) {
			p := w.browser.newTab(t)
			status := p.open(address)
			if status != http.StatusBadGateway || !strings.Contains(p.text(), says) {
				t.Errorf("%d %s", status, p.text())
			}
			p.picture()
		})
	}
	page("closed", w.byName(id, closedPort), "8002")
	page("unknown", w.byName("sb00000000000000000000", appPort), "sb00000000000000000000")
	if err := w.server.Do(t.Context(), http.MethodPost, "/v1/sandboxes/"+id+"/pause", nil, nil); err != nil {
		t.Fatal(err)
	}
	page("paused", w.byName(id, appPort), "paused")
	if err := w.server.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	page("removed", w.byPath(id, appPort), id)
}

// Who opens a page of a sandbox that sleeps wakes it, and gets the page.
func TestWakeByBrowser(t *testing.T) {
	w := theWorld(t)
	id := w.create(t, api.CreateSandboxRequest{AutoResume: true})
	if err := w.server.Do(t.Context(), http.MethodPost, "/v1/sandboxes/"+id+"/pause", nil, nil); err != nil {
		t.Fatal(err)
	}
	p := w.browser.newTab(t)
	if status := p.open(w.byName(id, appPort)); status != http.StatusOK || !strings.Contains(p.text(), "An application in a sandbox") {
		t.Errorf("%d %s", status, p.text())
	}
	echoes(t, p)
}
