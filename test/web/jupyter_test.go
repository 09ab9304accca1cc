package web_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/wrenn-sandbox/wrenn/api"
)

const (
	// withJupyter names the variable that asks for the test of Jupyter, which installs
	// more than a hundred packages: `make test-jupyter` sets it.
	withJupyter = "WRENN_TEST_JUPYTER"
	// jupyterPort is where the one listens that is shown by name, and the next port where
	// the one does that is shown by path.
	jupyterPort = 8888
	// installLimit bounds the installation, in seconds.
	installLimit = 600
	// jupyterPassword is what its login page wants.
	jupyterPassword = "a-password-of-the-tests"
	// installJupyter brings it from Debian's packages; startJupyter runs it with a password.
	installJupyter = "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends jupyter-notebook python3-ipykernel"
	startJupyter   = `hash=$(python3 -c 'from notebook.auth import passwd; print(passwd("` + jupyterPassword + `"))') &&
		exec jupyter-notebook --no-browser --ip 127.0.0.1 --port "$1" --NotebookApp.base_url="$2" --NotebookApp.password="$hash" \
			--NotebookApp.allow_remote_access=True --NotebookApp.iopub_data_rate_limit=1e9 --NotebookApp.iopub_msg_rate_limit=1e6`
	// printing is a cell that prints some 200 KiB a second until there is a file named stop.
	printing = `import os, time
while not os.path.exists('stop'):
    print('x' * 99)
    time.sleep(0.0005)
print('stopped')`
)

// notebook is one with a single cell.
const notebook = `{"cells": [{"cell_type": "code", "execution_count": null, "metadata": {}, "outputs": [], "source": ["print('the answer is', 6 * 7)"]}],
	"metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 4}`

// A person logs in to Jupyter, opens a notebook and runs a cell: redirects, cookies, a check
// of the origin and a WebSocket, all of somebody else's making.
func TestJupyter(t *testing.T) {
	if os.Getenv(withJupyter) == "" {
		t.Skipf("it installs more than a hundred packages in a sandbox; `make test-jupyter` runs it")
	}
	w := theWorld(t)
	const memory, cpus = 2048, 2
	id, err := w.server.Create(t.Context(), api.CreateSandboxRequest{MemoryMb: memory, Vcpus: cpus})
	if err != nil {
		t.Fatal(err)
	}
	at := "/v1/sandboxes/" + id
	asRoot(t, w, id, installJupyter)
	if err := w.server.Do(t.Context(), http.MethodPost, at+"/files/write?path=hello.ipynb", strings.NewReader(notebook), nil); err != nil {
		t.Fatal(err)
	}
	below := fmt.Sprintf("/absproxy/%s/%d/", id, jupyterPort+1)
	ways := []struct{ name, base, address string }{
		{"name", "/", w.byName(id, jupyterPort)},
		{"path", below, w.paths + below},
	}
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			port := jupyterPort + i
			start := api.ExecRequest{Cmd: "sh", Args: []string{"-c", startJupyter, "sh", strconv.Itoa(port), way.base}, Background: true}
			if err := w.server.Do(t.Context(), http.MethodPost, at+"/exec", start, nil); err != nil {
				t.Fatal(err)
			}
			if err := w.awaitPorts(t.Context(), id, port); err != nil {
				t.Fatal(err)
			}
			p := w.browser.newTab(t)
			runNotebook(t, p, way.address, way.base)
			o := w.openTerminal(t, id)
			o.isQuick(t, manyKeys, echoLimit, "beside an idle notebook")
			whilePrinting(t, w, p, id, func() { o.isQuick(t, manyKeys, echoLimit, "beside a cell that prints") })
		})
	}
	if err := w.server.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// whilePrinting does something while a cell prints into a page, and makes sure that it did
// so all the time.
func whilePrinting(t *testing.T, w *world, p *tab, id string, do func()) {
	t.Helper()
	file := "/v1/sandboxes/" + id + "/files"
	printed := func() int {
		return eval[int](p, `(document.querySelector(".output")?.textContent || "").length`)
	}
	eval[bool](p, "Jupyter.notebook.get_cell(0).set_text("+strconv.Quote(printing)+"), Jupyter.notebook.execute_all_cells(), true")
	more := func(than int) {
		t.Helper()
		if err := await(p.ctx, func() error {
			if n := printed(); n <= than {
				return fmt.Errorf("%d characters are printed", n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	const begun = 1000 // characters
	more(begun)
	before := printed()
	do()
	t.Logf("meanwhile the cell printed %d KiB", (printed()-before)>>10)
	more(printed()) // it goes on
	if err := w.server.Do(t.Context(), http.MethodPost, file+"/write?path=stop", strings.NewReader(""), nil); err != nil {
		t.Fatal(err)
	}
	err := await(p.ctx, func() error {
		if done := eval[bool](p, `(document.querySelector(".output")?.textContent || "").trimEnd().endsWith("stopped")`); !done {
			return errors.New("the cell still prints")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.Exec(t.Context(), id, "rm", "stop"); err != nil {
		t.Fatal(err)
	}
}

// runNotebook logs in and runs the cell of hello.ipynb.
// The path of the server's address as it knows it itself is root.
func runNotebook(t *testing.T, p *tab, base, root string) {
	t.Helper()
	// A server on loopback is shown a moment after it listens.
	err := await(p.ctx, func() error {
		if status := p.open(base + "notebooks/hello.ipynb"); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, p.text())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.at(base + "login?next=" + url.QueryEscape(root+"notebooks/hello.ipynb"))
	p.run("type the password", chromedp.SendKeys(chromedp.ID("password_input"), jupyterPassword))
	p.click("#login_submit", base+"notebooks/hello.ipynb")
	err = await(p.ctx, func() error {
		state, err := ask(p, chromedp.Evaluate[string](`document.querySelector("#kernel_indicator_icon")?.className || "none"`))
		if err == nil && !strings.Contains(state, "kernel_idle_icon") {
			err = fmt.Errorf("the kernel is %q", state)
		}
		return err
	})
	if err != nil {
		p.picture()
		t.Fatal(err)
	}
	eval[bool](p, "Jupyter.notebook.execute_all_cells(), true")
	err = await(p.ctx, func() error {
		output, err := ask(p, chromedp.Evaluate[string](`document.querySelector(".output_area pre")?.innerText || ""`))
		if err == nil && strings.TrimSpace(output) != "the answer is 42" {
			err = fmt.Errorf("the cell printed %q", output)
		}
		return err
	})
	p.picture()
	if err != nil {
		t.Fatal(err)
	}
}
