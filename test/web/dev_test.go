package web_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/wrenn-sandbox/wrenn/api"
)

const (
	// withDevServers names the variable that asks for the tests of development servers,
	// which bring hundreds of megabytes from npm: `make test-dev` sets it.
	withDevServers = "WRENN_TEST_DEV"
	// vitePort and nextPort are where they listen that are shown by name; those that are
	// shown by path listen one port higher.
	vitePort = 5173
	nextPort = 3000
	// installNode brings Node from Debian's packages. The servers' own packages come from
	// this machine, where npm has checked them.
	installNode = "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends nodejs"
	devMemory   = 3072 // MiB
	devCPUs     = 2
	// saveEvery is how long a change has before it is made again.
	saveEvery = 3 * time.Second
)

// devServer is a development server that runs in a sandbox once for each way to it.
type devServer struct {
	dir  string // of its sources
	port int
	// start is a shell script that serves on $PORT of loopback, its pages below $BASE: a
	// path without a slash at its end, empty for the root of an origin.
	start string
	// changing is a source in which the word "before" is shown by the page.
	changing string
	// secondAt is where the link to the second page leads.
	secondAt string
	// slash is whether the first page's address ends in one, below a path.
	slash bool
}

func TestVite(t *testing.T) {
	devServer{
		dir: "vite", port: vitePort, changing: "greeting.js", secondAt: "/second.html", slash: true,
		start: `exec node node_modules/vite/bin/vite.js --strictPort --port "$PORT" --base "$BASE/"`,
	}.test(t)
}

func TestNext(t *testing.T) {
	devServer{
		dir: "next", port: nextPort, changing: "app/greeting.js", secondAt: "/second",
		start: `BASE_PATH="$BASE" NEXT_TELEMETRY_DISABLED=1 exec node node_modules/next/dist/bin/next dev --port "$PORT"`,
	}.test(t)
}

// test opens the server's page by name and by path, changes a file through the API, which
// the page that is open must show without being loaded again, and goes to another page.
func (d devServer) test(t *testing.T) {
	if os.Getenv(withDevServers) == "" {
		t.Skip("it brings hundreds of megabytes from npm; `make test-dev` runs it")
	}
	w := theWorld(t)
	memory, cpus := devMemory, devCPUs
	id, err := w.server.Create(t.Context(), api.CreateSandboxRequest{MemoryMb: memory, Vcpus: cpus})
	if err != nil {
		t.Fatal(err)
	}
	asRoot(t, w, id, installNode)
	below := fmt.Sprintf("/absproxy/%s/%d", id, d.port+1)
	ways := []struct{ name, base, root string }{
		{"name", "", strings.TrimSuffix(w.byName(id, d.port), "/")},
		{"path", below, w.paths + below},
	}
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			d.upload(t, w, id, way.name)
			script := "cd " + way.name + "; export PORT=" + strconv.Itoa(d.port+i) + " BASE=" + way.base + "; " + d.start
			start := api.ExecRequest{Cmd: "sh", Args: []string{"-c", script}, Background: true}
			if err := w.server.Do(t.Context(), http.MethodPost, "/v1/sandboxes/"+id+"/exec", start, nil); err != nil {
				t.Fatal(err)
			}
			if err := w.awaitPorts(t.Context(), id, d.port+i); err != nil {
				t.Fatal(err)
			}
			d.visit(t, w, id, way.name, way.root)
		})
	}
	if err := w.server.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// upload puts the sources and their packages into a directory of the sandbox.
func (d devServer) upload(t *testing.T, w *world, id, into string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join("dev", d.dir, "node_modules")); err != nil {
		t.Fatalf("%v; `make test-dev` brings it", err)
	}
	tar := exec.CommandContext(t.Context(), "tar", "-c", "--owner=0", "--group=0", "-C", filepath.Join("dev", d.dir), "--exclude=./.next", ".")
	archive, err := tar.StdoutPipe()
	if err == nil {
		err = tar.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	err = w.server.Do(t.Context(), http.MethodPost, "/v1/sandboxes/"+id+"/files/write?path=sources.tar", io.Reader(archive), nil)
	if waited := tar.Wait(); err != nil || waited != nil {
		t.Fatal(err, waited)
	}
	if _, err := w.server.Exec(t.Context(), id, "sh", "-c", `mkdir "$0" && tar -x --no-same-owner -C "$0" -f sources.tar && rm sources.tar`, into); err != nil {
		t.Fatal(err)
	}
}

// visit looks at the pages below an address, whose sources are in a directory.
func (d devServer) visit(t *testing.T, w *world, id, dir, root string) {
	t.Helper()
	p := w.browser.newTab(t)
	first := root
	if d.slash {
		first += "/"
	}
	// A server on loopback is shown a moment after it listens.
	err := await(p.ctx, func() error {
		if status := p.open(first); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, p.text())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.shows("#greeting", "before")
	eval[bool](p, "window.untouched = true")
	at := filepath.Join("dev", d.dir, filepath.FromSlash(d.changing))
	source, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(source), "before", "after", 1)
	write := "/v1/sandboxes/" + id + "/files/write?path=" + dir + "/" + d.changing
	// A page is told of changes only once its WebSocket is open, which it does not say: until
	// then the file is saved again, now and then.
	var saved time.Time
	err = await(p.ctx, func() error {
		if time.Since(saved) > saveEvery {
			saved = time.Now()
			if err := w.server.Do(t.Context(), http.MethodPost, write, strings.NewReader(changed), nil); err != nil {
				return err
			}
		}
		return p.has("#greeting", "after")
	})
	if err != nil {
		t.Fatal(err)
	}
	p.picture()
	if !eval[bool](p, "window.untouched === true") {
		t.Error("the page was loaded again; a hot update changes it where it is")
	}
	p.click("#second", root+d.secondAt)
	p.shows("h1", "The second page")
	p.run("go back", chromedp.Evaluate[chromedp.Void]("history.back()"))
	p.shows("#greeting", "after")
}

// shows waits until what a selector finds has a text.
func (p *tab) shows(selector, text string) {
	p.t.Helper()
	if err := await(p.ctx, func() error { return p.has(selector, text) }); err != nil {
		p.picture()
		p.t.Fatal(err)
	}
}

// has returns an error unless what a selector finds has a text.
func (p *tab) has(selector, text string) error {
	now, err := ask(p, chromedp.Evaluate[string](fmt.Sprintf("document.querySelector(%q)?.textContent || ''", selector)))
	if err == nil && now != text {
		err = fmt.Errorf("%s is %q, not %q", selector, now, text)
	}
	return err
}

// asRoot runs a script that must succeed.
func asRoot(t *testing.T, w *world, id, script string) {
	t.Helper()
	request := api.ExecRequest{Cmd: "sh", Args: []string{"-c", script}, User: "root", TimeoutSec: new(int64(installLimit))}
	var result api.ExecResult
	if err := w.server.Do(t.Context(), http.MethodPost, "/v1/sandboxes/"+id+"/exec", request, &result); err != nil || result.ExitCode != 0 {
		t.Fatalf("%s: %v %s %s", script, err, result.Stdout, result.Stderr)
	}
}
