package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

// ledger is the program whose state must outlive every pause: memory with a checksum, a
// counter, a file that it appends the counter to through one open descriptor, and a listener
// that tells who asks whether all of that is as it was.
const ledger = `
import hashlib, os, socket, threading, time
kept = os.urandom(16 << 20)
want = hashlib.sha256(kept).digest()
born = os.urandom(8).hex()
count = 0
book = os.open('/home/wrenn-user/book', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def work():
    global count
    while True:
        os.write(book, b'%011d\n' % (count + 1))
        count += 1
        time.sleep(0.05)
threading.Thread(target=work, daemon=True).start()
listener = socket.create_server(('0.0.0.0', 7000))
while True:
    asker, _ = listener.accept()
    least = count
    memory = hashlib.sha256(kept).digest() == want
    with open('/home/wrenn-user/book', 'rb') as f:
        pages = f.read()
    written = len(pages) // 12
    whole = len(pages) % 12 == 0 and written >= least and pages == b''.join(b'%011d\n' % (i + 1) for i in range(written))
    asker.sendall(b'%s %d %d %d\n' % (born.encode(), least, memory, whole))
    asker.close()
`

const (
	// asks is how the ledger is asked, without a program to load first.
	asks = "exec 3<>/dev/tcp/127.0.0.1/7000 && read -r line <&3 && echo $line"
	// uploadBytes is what is uploaded before each pause and read back after it; the last
	// uploadsKept of them are there.
	uploadBytes = 256 << 10
	uploadsKept = 4
	// settled is the number of cycles after which everything should have its size.
	settled = 10
)

// account is a sandbox with a ledger, and what is known of it.
type account struct {
	*guest
	born    string
	count   int
	uploads [uploadsKept][sha256.Size]byte
	bytes   int // that were compared
}

func (b *bench) newAccount(ctx context.Context, id string) (*account, error) {
	a := &account{guest: &guest{b.server, id}}
	if err := a.background(ctx, `exec python3 -c "$0" 2>/home/wrenn-user/errors`, ledger); err != nil {
		return nil, err
	}
	return a, await(ctx, "the ledger answers", func() error { return a.check(ctx) })
}

// check asks the ledger.
func (a *account) check(ctx context.Context) error {
	out, err := a.server.Exec(ctx, a.id, "/bin/bash", "-c", asks)
	if err != nil {
		return err
	}
	var born string
	var count, memory, whole int
	if _, err := fmt.Sscan(out, &born, &count, &memory, &whole); err != nil {
		return fmt.Errorf("the ledger said %q", out)
	}
	if a.born == "" {
		a.born = born
	}
	if born != a.born || count < a.count || memory != 1 || whole != 1 {
		return fmt.Errorf("lost: the ledger was %s and had counted to %d, and says %q", a.born, a.count, out)
	}
	const bytesKept, bytesALine = 16 << 20, 12
	a.count, a.bytes = count, a.bytes+bytesKept+count*bytesALine
	return nil
}

func uploadName(cycle int) string {
	return fmt.Sprintf("/home/wrenn-user/upload%d", cycle%uploadsKept)
}

// upload puts noise into a file.
func (a *account) upload(ctx context.Context, cycle int) error {
	noise := make([]byte, uploadBytes)
	var seed [32]byte
	copy(seed[:], fmt.Sprint(a.id, cycle))
	_, _ = rand.NewChaCha8(seed).Read(noise)
	a.uploads[cycle%uploadsKept] = sha256.Sum256(noise)
	path := "/v1/sandboxes/" + a.id + "/files/write?path=" + url.QueryEscape(uploadName(cycle))
	return a.server.Do(ctx, http.MethodPost, path, bytes.NewReader(noise), nil)
}

// compare reads what was uploaded and is still there.
func (a *account) compare(ctx context.Context, cycle int) error {
	for i := max(0, cycle-uploadsKept+1); i <= cycle; i++ {
		resp, err := a.server.Send(ctx, http.MethodPost, "/v1/sandboxes/"+a.id+"/files/read", api.PathRequest{Path: uploadName(i)})
		if err != nil {
			return err
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if sha256.Sum256(data) != a.uploads[i%uploadsKept] {
			return fmt.Errorf("lost: %s is not what was uploaded in cycle %d", uploadName(i), i)
		}
		a.bytes += len(data)
	}
	return nil
}

// cycle pauses and resumes several sandboxes at once, again and again, and looks each time
// whether all that was in them is there, and at the end what is left on the host.
func (b *bench) cycle(ctx context.Context) (err error) {
	ids, err := b.createAll(ctx, b.cycled)
	removed := false
	defer func() {
		if !removed {
			err = errors.Join(err, b.removeAll(ids))
		}
	}()
	if err != nil {
		return err
	}
	accounts := make([]*account, len(ids))
	for i, id := range ids {
		if accounts[i], err = b.newAccount(ctx, id); err != nil {
			return err
		}
	}
	var all figures
	var early holdings
	began := time.Now()
	for i := range b.cycles {
		figures, err := cycleAll(ctx, accounts, i)
		if err != nil {
			return fmt.Errorf("cycle %d: %w", i, err)
		}
		all.add(figures)
		if i+1 == min(settled, b.cycles) {
			if early, err = b.holdings(); err != nil {
				return err
			}
		}
		const tell = 10
		if (i+1)%tell == 0 {
			fmt.Fprintf(os.Stderr, "%d cycles in %v\n", i+1, time.Since(began).Round(time.Second))
		}
	}
	compared := 0
	for _, a := range accounts {
		compared += a.bytes
	}
	what := fmt.Sprintf("%d cycles of %d sandboxes at once", b.cycles, b.cycled)
	b.table.Add(report.Row{
		What: what + ": compared; lost", Ours: fmt.Sprintf("%.1f GB; 0", float64(compared)/1e9), Target: "0 lost", Met: true, // or this line is not reached
	})
	b.table.Add(report.Row{
		What: what + ": pause, resume, medians", Ours: report.MS(all.pause.Median()) + ", " + report.MS(all.resume.Median()),
	})
	late, err := b.noMoreThan(ctx, early)
	if err != nil {
		return err
	}
	removed = true
	if err := b.removeAll(ids); err != nil {
		return err
	}
	b.addGrowth(early, late)
	return b.addLeft(ctx)
}

// cycleAll takes all accounts through one cycle at the same time.
func cycleAll(ctx context.Context, accounts []*account, cycle int) (figures, error) {
	each := make([]figures, len(accounts))
	group, ctx := errgroup.WithContext(ctx)
	for i, a := range accounts {
		group.Go(func() error {
			f, err := a.cycle(ctx, cycle)
			each[i] = f
			if err != nil {
				return fmt.Errorf("sandbox %s: %w", a.id, err)
			}
			return nil
		})
	}
	err := group.Wait()
	var sum figures
	for _, f := range each {
		sum.add(f)
	}
	return sum, err
}

func (a *account) cycle(ctx context.Context, cycle int) (f figures, err error) {
	if err := a.upload(ctx, cycle); err != nil {
		return f, err
	}
	took, err := a.pause(ctx)
	if err != nil {
		return f, err
	}
	f.pause = append(f.pause, took)
	if took, err = a.resume(ctx); err != nil {
		return f, err
	}
	f.resume = append(f.resume, took)
	if err := a.check(ctx); err != nil {
		return f, err
	}
	return f, a.compare(ctx, cycle)
}
