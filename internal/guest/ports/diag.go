package ports

import (
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// diag asks the kernel for its listening sockets, see sock_diag(7). It walks only those;
// to write its tables it walks all places for connections, of which a machine with much
// memory has so many that each look takes milliseconds. gVisor has the tables alone, whose
// size there is that of their content. It is for one goroutine.
type diag struct {
	fd      int
	request []byte // the same each time, but for the family
	buf     []byte
}

const (
	// diagBuffer holds the longest piece in which the kernel answers, in bytes.
	diagBuffer = 32 << 10
	// diagListening is the set of states that has only TCP_LISTEN.
	diagListening = 1 << 10
)

// Places in struct nlmsghdr, struct inet_diag_req_v2 behind it, and struct inet_diag_msg,
// see linux/netlink.h and linux/inet_diag.h.
const (
	headerType  = 4
	headerFlags = 6

	requestSize     = unix.SizeofNlMsghdr + 56
	requestFamily   = unix.SizeofNlMsghdr
	requestProtocol = unix.SizeofNlMsghdr + 1
	requestStates   = unix.SizeofNlMsghdr + 4

	answerFamily  = 0
	answerPort    = 4 // in the network's byte order
	answerAddress = 8
	answerInode   = 68
	answerSize    = 72
)

func openDiag() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	d := &diag{fd: fd, request: make([]byte, requestSize), buf: make([]byte, diagBuffer)}
	binary.NativeEndian.PutUint32(d.request, requestSize)
	binary.NativeEndian.PutUint16(d.request[headerType:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(d.request[headerFlags:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	d.request[requestProtocol] = unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(d.request[requestStates:], diagListening)
	return d, nil
}

func (d *diag) close() { _ = unix.Close(d.fd) }

// read appends the listening sockets to list, in no order. After an error the diag is of no
// more use: part of an answer may be waiting in it.
func (d *diag) read(list []listener) ([]listener, error) {
	list, err := d.readFamily(list, unix.AF_INET)
	if err != nil {
		return list, err
	}
	return d.readFamily(list, unix.AF_INET6)
}

func (d *diag) readFamily(list []listener, family byte) ([]listener, error) {
	d.request[requestFamily] = family
	if _, err := unix.Write(d.fd, d.request); err != nil {
		return list, os.NewSyscallError("write", err)
	}
	for {
		// The kernel makes the next piece as this one is read: there is nothing to wait for.
		n, err := unix.Read(d.fd, d.buf)
		if err != nil {
			return list, os.NewSyscallError("read", err)
		}
		var done bool
		if list, done, err = appendAnswers(list, d.buf[:n]); done || err != nil {
			return list, err
		}
	}
}

// appendAnswers appends the sockets of one piece of an answer, and says whether it was the
// last one.
func appendAnswers(list []listener, piece []byte) (_ []listener, done bool, err error) {
	for len(piece) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(piece))
		if size < unix.SizeofNlMsghdr || size > len(piece) {
			return list, false, errDiag
		}
		switch binary.NativeEndian.Uint16(piece[headerType:]) {
		case unix.NLMSG_DONE: // with 0, or with what went wrong
			if size >= unix.SizeofNlMsghdr+word && binary.NativeEndian.Uint32(piece[unix.SizeofNlMsghdr:]) != 0 {
				return list, false, errDiag
			}
			return list, true, nil
		case unix.SOCK_DIAG_BY_FAMILY:
			l, ok := parseAnswer(piece[unix.SizeofNlMsghdr:size])
			if !ok {
				return list, false, errDiag
			}
			if l.addr.Port() != 0 {
				list = append(list, l)
			}
		default: // an error, such as that the kernel does not know how to answer
			return list, false, errDiag
		}
		piece = piece[min(len(piece), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return list, false, nil
}

var errDiag = fault.New(fault.Internal, "the kernel does not tell its listening sockets")

func parseAnswer(answer []byte) (l listener, ok bool) {
	if len(answer) < answerSize {
		return l, false
	}
	var ip netip.Addr
	switch answer[answerFamily] {
	case unix.AF_INET:
		ip = netip.AddrFrom4([4]byte(answer[answerAddress:]))
	case unix.AF_INET6:
		ip = netip.AddrFrom16([16]byte(answer[answerAddress:])).Unmap()
		l.v6 = true
	default:
		return l, false
	}
	l.addr = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(answer[answerPort:]))
	l.inode = uint64(binary.NativeEndian.Uint32(answer[answerInode:]))
	return l, true
}
