package web_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

const (
	// startBrowserLimit bounds the browser's start, actionLimit what it is asked to do.
	startBrowserLimit = 60 * time.Second
	actionLimit       = 30 * time.Second
	// screenshots names a directory to keep pictures of the pages in, for people to look at.
	screenshots = "WRENN_TEST_SCREENSHOTS"
	fullQuality = 100
)

// browser is one Chromium.
type browser struct {
	ctx  context.Context
	stop func()
}

func startBrowser(program string) (*browser, error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program),
		chromedp.NoSandbox, // tests run as root
		chromedp.Flag("no-proxy-server", true),
		chromedp.WSURLReadTimeout(startBrowserLimit),
	)
	allocator, stopAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, stopBrowser := chromedp.NewContext(allocator)
	stop := func() {
		stopBrowser()
		stopAllocator() // and waits for its end
	}
	if err := chromedp.Do(ctx); err != nil {
		stop()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return &browser{ctx, stop}, nil
}

// tab is a page of a profile of its own: it shares no cookies with others.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// newTab opens one that is closed when the test ends.
func (b *browser) newTab(t *testing.T) *tab {
	t.Helper()
	ctx, stop := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(stop)
	// The first call makes the page, which lives as long as the call's context.
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return &tab{t: t, ctx: ctx}
}

// ask does something in a page and returns what that says.
func ask[T any](p *tab, action chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, actionLimit)
	defer cancel()
	return chromedp.Run(ctx, action)
}

// run does something in the page that must succeed.
func (p *tab) run(what string, action chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if _, err := ask(p, action); err != nil {
		p.picture()
		p.t.Fatalf("%s: %v; the page says %q", what, err, p.text())
	}
}

// open goes to an address and waits until the page is there. It returns its status.
func (p *tab) open(address string) int64 {
	p.t.Helper()
	response, err := ask(p, chromedp.NavigateResponse(address))
	if err != nil || response == nil {
		p.t.Fatalf("open %s: %v %v", address, response, err)
	}
	return response.Status
}

// click clicks on what a selector finds, and waits until that has led to an address.
func (p *tab) click(selector, leadsTo string) {
	p.t.Helper()
	p.run("click "+selector, chromedp.Click(chromedp.Search(selector)))
	p.at(leadsTo)
}

// at waits until the page is the one at an address, whole.
func (p *tab) at(address string) {
	p.t.Helper()
	err := await(p.ctx, func() error {
		now, err := ask(p, chromedp.Evaluate[string](`document.readyState + " " + location.href`))
		if err != nil {
			return err
		}
		if now != "complete "+address {
			return fmt.Errorf("the page is %s, not %s", now, address)
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// eval evaluates an expression of JavaScript, and waits if it is a promise.
func eval[T any](p *tab, expression string) T {
	p.t.Helper()
	result, err := ask(p, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return result
}

// text is what a person reads.
func (p *tab) text() string {
	p.t.Helper()
	return eval[string](p, "document.body.innerText")
}

// picture keeps a picture of the page, where somebody wants to look at them.
func (p *tab) picture() {
	p.t.Helper()
	dir := os.Getenv(screenshots)
	if dir == "" {
		return
	}
	image, err := ask(p, chromedp.FullScreenshot(fullQuality))
	if err != nil {
		p.t.Fatal(err)
	}
	name := strings.ReplaceAll(p.t.Name(), "/", "-") + ".png"
	if err := os.WriteFile(filepath.Join(dir, name), image, 0o600); err != nil {
		p.t.Fatal(err)
	}
}
