package ports

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// wantDiag skips a test of asking the kernel for sockets where the kernel has nobody to ask,
// as gVisor.
func wantDiag(t testing.TB) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skipf("this kernel cannot be asked for its sockets: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
}

func TestKernelAndTablesAgree(t *testing.T) {
	wantDiag(t)
	for range 200 { // more than one piece of an answer
		listen(t, "127.0.0.1:0")
	}
	for _, address := range []string{"0.0.0.0:0", "[::1]:0", "[::]:0"} {
		listen(t, address)
	}
	reach(t, "127.0.0.1:"+strconv.Itoa(int(portOf(listen(t, "127.0.0.1:0"))))) // is no listener
	table, err := openTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	if table.diag == nil {
		t.Fatal("this kernel answers no questions about sockets")
	}
	asked, err := table.diag.read(nil)
	if err != nil {
		t.Fatal(err)
	}
	table.diag.close()
	table.diag = nil
	read, err := table.read(nil)
	if err != nil {
		t.Fatal(err)
	}
	sortListeners(asked)
	sortListeners(read)
	if !slices.Equal(asked, read) || len(read) < 200 {
		t.Errorf("asked %d: %v\nread %d: %v", len(asked), asked, len(read), read)
	}
}

func TestTablesWhereTheKernelIsMute(t *testing.T) {
	wantDiag(t)
	listen(t, "127.0.0.1:0")
	table, err := openTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	// As on a kernel that has the socket but no answers.
	table.diag.request[requestProtocol] = unix.IPPROTO_ICMP
	list, err := table.read(nil)
	if err != nil || len(list) == 0 {
		t.Fatalf("%v, %v", list, err)
	}
	if table.diag != nil {
		t.Error("the kernel is asked again")
	}
}

func FuzzAnswers(f *testing.F) {
	wantDiag(f)
	d, err := openDiag()
	if err != nil {
		f.Fatal(err)
	}
	defer d.close()
	d.request[requestFamily] = unix.AF_INET
	if _, err := unix.Write(d.fd, d.request); err != nil {
		f.Fatal(err)
	}
	n, err := unix.Read(d.fd, d.buf)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d.buf[:n])
	f.Add(slices.Concat(make([]byte, unix.SizeofNlMsghdr), d.buf[:n]))
	f.Fuzz(func(t *testing.T, piece []byte) {
		list, done, err := appendAnswers(nil, piece)
		if done && err != nil || len(list) > len(piece)/answerSize {
			t.Fatalf("%d listeners of %d bytes, done: %v, %v", len(list), len(piece), done, err)
		}
	})
}
