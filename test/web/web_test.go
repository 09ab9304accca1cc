// Package web shows real applications in real sandboxes to a real browser, Chromium, by
// each of the ways in which a browser can come: by host name and by path. It must know
// nothing of Wrenn but what its API says and what the browser shows.
package web_test

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/product"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

const (
	// appPort is where testdata/app.py listens, filesPort a plain file server.
	appPort   = 8000
	filesPort = 8001
	// closedPort is one at which nothing listens.
	closedPort = 8002

	// settleLimit bounds what follows from something else on a busy machine.
	settleLimit = 30 * time.Second
	pollEvery   = 20 * time.Millisecond
)

//go:embed testdata/app.py
var appSource string

// world is what the tests share: a server, a sandbox with applications in it, a browser.
type world struct {
	dir     string
	server  *product.Server
	browser *browser
	paths   string // the origin at which ports are by path
	sandbox string
}

var shared struct {
	once sync.Once
	w    world
	err  error
}

// theWorld makes what the tests share, at the first call.
func theWorld(t *testing.T) *world {
	t.Helper()
	shared.once.Do(func() { shared.err = shared.w.make(t) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return &shared.w
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := shared.w.end(); err != nil {
		fmt.Fprintln(os.Stderr, "after all tests:", err)
		code = 1
	}
	os.Exit(code)
}

func (w *world) make(t *testing.T) error {
	var err error
	if w.dir, err = os.MkdirTemp("", "wrenn-web-"); err != nil {
		return err
	}
	if w.browser, err = startBrowser(testenv.Program(t, "chromium")); err != nil {
		return err
	}
	// Links lead to names where the server has a domain, so the tests have to know where
	// ports are by path.
	paths, err := freeAddress()
	if err != nil {
		return err
	}
	w.paths = "http://" + paths
	w.server, err = product.Start(context.Background(), product.Options{
		Bin: filepath.Dir(testenv.Bin(t, "wrenn")), Images: testenv.Images(t),
		Args: []string{"--on-stop", "kill", "--proxy-listen", paths},
	}, w.dir)
	if err != nil {
		return err
	}
	w.sandbox, err = w.server.Create(context.Background(), api.CreateSandboxRequest{})
	if err == nil {
		err = w.startApps(context.Background(), w.sandbox)
	}
	return err
}

// end undoes make, as far as it came.
func (w *world) end() error {
	var errs []error
	if w.server != nil {
		errs = append(errs, w.server.Stop()) // and with it all sandboxes
	}
	if w.browser != nil {
		w.browser.stop()
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}

// startApps starts the applications in a sandbox, and waits until they listen.
func (w *world) startApps(ctx context.Context, id string) error {
	write := "/v1/sandboxes/" + id + "/files/write?path=" + url.QueryEscape("app.py")
	if err := w.server.Do(ctx, http.MethodPost, write, strings.NewReader(appSource), nil); err != nil {
		return err
	}
	const site = `mkdir -p "site/sub/deeper" && cd site && echo "a plain file" >notes.txt && echo "<title>deep</title>" >sub/deeper/page.html &&
		echo "odd" >"sub/a name & 100%2F +ü.txt"`
	if _, err := w.server.Exec(ctx, id, "sh", "-c", site); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"app.py", strconv.Itoa(appPort)},
		// On loopback alone, as dev servers are.
		{"-m", "http.server", strconv.Itoa(filesPort), "--bind", "127.0.0.1", "--directory", "site"},
	} {
		request := api.ExecRequest{Cmd: "python3", Args: args, Background: true}
		if err := w.server.Do(ctx, http.MethodPost, "/v1/sandboxes/"+id+"/exec", request, nil); err != nil {
			return err
		}
	}
	return w.awaitPorts(ctx, id, appPort, filesPort)
}

// awaitPorts waits until servers in the sandbox listen on ports.
func (w *world) awaitPorts(ctx context.Context, id string, ports ...int) error {
	return await(ctx, func() error {
		var list api.PortList
		if err := w.server.Do(ctx, http.MethodGet, "/v1/sandboxes/"+id+"/ports", nil, &list); err != nil {
			return err
		}
		for _, port := range ports {
			if !slices.ContainsFunc(list.Ports, func(p api.Port) bool { return p.Port == port }) {
				return fmt.Errorf("nothing listens on %d: %+v", port, list.Ports)
			}
		}
		return nil
	})
}

// create makes a sandbox that goes with the test, with the applications in it.
func (w *world) create(t *testing.T, request api.CreateSandboxRequest) string {
	t.Helper()
	id, err := w.server.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
		defer cancel()
		if err := w.server.Remove(ctx, id); err != nil {
			t.Error(err)
		}
	})
	if err := w.startApps(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

// byName is the origin of a port under a host name of its own.
func (w *world) byName(id string, port int) string {
	at, err := url.Parse(w.server.URL())
	if err != nil {
		panic(err) // it was connected to
	}
	return fmt.Sprintf("http://%d-%s.localhost:%s/", port, id, at.Port())
}

// byPath is the address of a port where there are no names.
func (w *world) byPath(id string, port int) string {
	return fmt.Sprintf("%s/proxy/%s/%d/", w.paths, id, port)
}

// ways is how a browser gets to a port.
var ways = map[string]func(w *world, id string, port int) string{"name": (*world).byName, "path": (*world).byPath}

// eachWay runs a test for each way.
func eachWay(t *testing.T, test func(t *testing.T, w *world, address func(port int) string)) {
	t.Helper()
	w := theWorld(t)
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			test(t, w, func(port int) string { return way(w, w.sandbox, port) })
		})
	}
}

// freeAddress is one on this machine at which nothing listens just now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// await waits until what holds, or fails with what it last said.
func await(ctx context.Context, holds func() error) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", settleLimit, err)
		case <-tick.C:
		}
	}
}
