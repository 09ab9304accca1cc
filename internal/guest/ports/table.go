package ports

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// The kernel's tables of TCP sockets, see proc_pid_net(5) and the kernel's
// Documentation/networking/proc_net_tcp.rst.
const (
	tablePath4 = "/proc/net/tcp"
	tablePath6 = "/proc/net/tcp6"
)

// firstBuffer holds some two dozen sockets, in bytes; the buffer grows as needed.
const firstBuffer = 4 << 10

// listener is one listening socket. IPv4 addresses in IPv6 sockets are plain IPv4 here.
type listener struct {
	addr  netip.AddrPort
	inode uint64
	v6    bool // of a tcp6 socket
}

func compareListeners(a, b listener) int {
	if c := cmp.Compare(a.addr.Port(), b.addr.Port()); c != 0 {
		return c
	}
	if c := a.addr.Addr().Compare(b.addr.Addr()); c != 0 {
		return c
	}
	return cmp.Compare(a.inode, b.inode)
}

func sortListeners(l []listener) { slices.SortFunc(l, compareListeners) }

// table reads the kernel's tables through files that stay open and a buffer that is used
// again: looking costs two reads for each, and no memory. Where the kernel can be asked it
// is, until it gives no answer. It is for one goroutine.
type table struct {
	diag       *diag    // nil where the kernel cannot be asked
	tcp4, tcp6 *os.File // tcp6 is nil on a machine without IPv6
	buf        []byte
}

func openTable() (*table, error) {
	tcp4, err := os.Open(tablePath4)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "the table of the sandbox's sockets cannot be opened")
	}
	tcp6, err := os.Open(tablePath6)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = tcp4.Close()
		return nil, fault.Wrap(err, fault.Internal, "the table of the sandbox's IPv6 sockets cannot be opened")
	}
	t := &table{tcp4: tcp4, tcp6: tcp6, buf: make([]byte, firstBuffer)}
	if d, err := openDiag(); err == nil {
		t.diag = d
	}
	return t, nil
}

func (t *table) close() {
	if t.diag != nil {
		t.diag.close()
	}
	_ = t.tcp4.Close()
	if t.tcp6 != nil {
		_ = t.tcp6.Close()
	}
}

// read appends the listening sockets to list, in no order.
func (t *table) read(list []listener) ([]listener, error) {
	if t.diag != nil {
		if list, err := t.diag.read(list); err == nil {
			return list, nil
		}
		t.diag.close()
		t.diag = nil
	}
	data, err := t.content(t.tcp4)
	if err != nil {
		return list, err
	}
	list = appendListeners(list, data, false)
	if t.tcp6 == nil {
		return list, nil
	}
	if data, err = t.content(t.tcp6); err != nil {
		return list, err
	}
	return appendListeners(list, data, true), nil
}

// content returns all of a file, valid until the next call.
func (t *table) content(f *os.File) ([]byte, error) {
	n := 0
	for {
		got, err := f.ReadAt(t.buf[n:], int64(n))
		n += got
		if errors.Is(err, io.EOF) {
			return t.buf[:n], nil
		}
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, "the table of the sandbox's sockets cannot be read")
		}
		t.buf = append(t.buf, make([]byte, len(t.buf))...)
	}
}

// stateListen is TCP_LISTEN as the tables write it.
const stateListen = "0A"

// The columns of a table that matter here.
const (
	columnLocal = 1
	columnState = 3
	columnInode = 9
)

// appendListeners appends the listening sockets of a table's content. Lines that are not
// what the kernel writes are passed over.
func appendListeners(list []listener, data []byte, v6 bool) []listener {
	for len(data) > 0 {
		var line []byte
		if end := bytes.IndexByte(data, '\n'); end < 0 {
			line, data = data, nil
		} else {
			line, data = data[:end], data[end+1:]
		}
		if l, ok := parseLine(line, v6); ok {
			list = append(list, l)
		}
	}
	return list
}

func parseLine(line []byte, v6 bool) (l listener, ok bool) {
	l.v6 = v6
	for column := 0; column <= columnInode; column++ {
		var field []byte
		if field, line = nextField(line); len(field) == 0 {
			return l, false
		}
		switch column {
		case columnLocal:
			if l.addr, ok = parseAddress(field, v6); !ok {
				return l, false
			}
		case columnState:
			if string(field) != stateListen {
				return l, false
			}
		case columnInode:
			for _, c := range field {
				if c < '0' || c > '9' {
					return l, false
				}
				l.inode = l.inode*10 + uint64(c-'0')
			}
		}
	}
	return l, l.addr.Port() != 0
}

func nextField(line []byte) (field, rest []byte) {
	for len(line) > 0 && line[0] == ' ' {
		line = line[1:]
	}
	if end := bytes.IndexByte(line, ' '); end >= 0 {
		return line[:end], line[end:]
	}
	return line, nil
}

const (
	word     = 4 // bytes of an address that are written as one number
	wordHex  = 2 * word
	portHex  = 4
	length4  = 1*wordHex + 1 + portHex
	length6  = 4*wordHex + 1 + portHex
	badDigit = 0xff
)

// parseAddress reads an address such as 0100007F:1F90. Each four bytes of it are written
// as one number in the machine's byte order; the port is in the usual one.
func parseAddress(field []byte, v6 bool) (addr netip.AddrPort, ok bool) {
	want := length4
	if v6 {
		want = length6
	}
	if len(field) != want || field[want-portHex-1] != ':' {
		return addr, false
	}
	port, ok := parseHex(field[want-portHex:])
	if !ok {
		return addr, false
	}
	var raw [16]byte
	for i := 0; (i+1)*wordHex < want; i++ {
		number, ok := parseHex(field[i*wordHex : (i+1)*wordHex])
		if !ok {
			return addr, false
		}
		binary.NativeEndian.PutUint32(raw[i*word:], number)
	}
	ip := netip.AddrFrom16(raw).Unmap()
	if !v6 {
		ip = netip.AddrFrom4([word]byte(raw[:word]))
	}
	return netip.AddrPortFrom(ip, uint16(port)), true
}

func parseHex(digits []byte) (n uint32, ok bool) {
	for _, c := range digits {
		d := hexDigit(c)
		if d == badDigit {
			return 0, false
		}
		n = n<<4 | uint32(d)
	}
	return n, true
}

func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return badDigit
}
