package web_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/wrenn-sandbox/wrenn/api"
)

const (
	// withJupyter names the variable that asks for the test of Jupyter, which installs
	// more than a hundred packages: `make test-jupyter` sets it.
	withJupyter = "WRENN_TEST_JUPYTER"
	jupyterPort = 8888
	// installLimit bounds the installation, in seconds.
	installLimit = 600
	// jupyterPassword is what its login page wants.
	jupyterPassword = "a-password-of-the-tests"
	// installJupyter brings it from Debian's packages; startJupyter runs it with a password.
	installJupyter = "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends jupyter-notebook python3-ipykernel"
	startJupyter   = `hash=$(python3 -c 'from notebook.auth import passwd; print(passwd("` + jupyterPassword + `"))') &&
		exec jupyter-notebook --no-browser --ip 127.0.0.1 --port 8888 --NotebookApp.password="$hash" --NotebookApp.allow_remote_access=True "$@"`
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
	start := api.ExecRequest{Cmd: "sh", Args: []string{"-c", startJupyter, "sh"}, Background: true}
	if err := w.server.Do(t.Context(), http.MethodPost, at+"/exec", start, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.awaitPorts(t.Context(), id, jupyterPort); err != nil {
		t.Fatal(err)
	}
	p, base := w.browser.newTab(t), w.byName(id, jupyterPort)
	runNotebook(t, p, base)
}

// runNotebook logs in and runs the cell of hello.ipynb.
func runNotebook(t *testing.T, p *tab, base string) {
	t.Helper()
	p.open(base + "notebooks/hello.ipynb")
	p.at(base + "login?next=" + url.QueryEscape("/notebooks/hello.ipynb"))
	p.run("type the password", chromedp.SendKeys(chromedp.ID("password_input"), jupyterPassword))
	p.click("#login_submit", base+"notebooks/hello.ipynb")
	err := await(p.ctx, func() error {
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
