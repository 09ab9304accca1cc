package identity

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// User is an account of the sandbox.
type User struct {
	Name     string
	UID, GID uint32
	// Groups are the groups beside GID that name the user as a member.
	Groups []uint32
	Home   string
	// Shell is what a login starts.
	Shell string
}

// Users reads the accounts of the system from files in the formats of passwd(5) and
// group(5). It is safe for concurrent use. What it read is kept until a file changes:
// every command looks its user up, and every entry of a directory its owner.
type Users struct {
	passwdPath, groupPath string

	mu            sync.Mutex
	passwd, group fileVersion
	byName        map[string]User
	userNames     map[uint32]string
	groupNames    map[uint32]string
}

// NewUsers returns the accounts in these two files.
func NewUsers(passwdPath, groupPath string) *Users {
	return &Users{passwdPath: passwdPath, groupPath: groupPath}
}

// root is who can mend accounts that cannot be read.
var root = User{Name: "root", Home: "/root", Shell: "/bin/sh"}

// Lookup returns the user with this name, or Unauthorized. While the accounts cannot be
// read there is root and nobody else.
func (u *Users) Lookup(name string) (User, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.refresh(); err != nil {
		if name == root.Name {
			return root, nil
		}
		return User{}, fault.Wrap(err, fault.Internal, "the accounts of the sandbox cannot be read; as root, make '%s' and '%s' ordinary files again", u.passwdPath, u.groupPath)
	}
	user, ok := u.byName[name]
	if !ok {
		return User{}, fault.New(fault.Unauthorized, "invalid username: '%s'", name)
	}
	return user, nil
}

// UserName returns the name of a user id, or the id itself when it has none.
func (u *Users) UserName(uid uint32) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.refresh() // what was read before, or the number, has to do
	return nameOr(u.userNames, uid)
}

// GroupName returns the name of a group id, or the id itself when it has none.
func (u *Users) GroupName(gid uint32) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.refresh()
	return nameOr(u.groupNames, gid)
}

func nameOr(names map[uint32]string, id uint32) string {
	if name, ok := names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// fileVersion tells one content of a file from another without reading it.
type fileVersion struct {
	inode, size uint64
	changed     syscall.Timespec
}

func versionOf(path string) (fileVersion, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return fileVersion{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileVersion{inode: st.Ino, size: uint64(st.Size), changed: st.Ctim}, nil
}

// refresh reads the files again if they have changed.
func (u *Users) refresh() error {
	passwd, err := versionOf(u.passwdPath)
	if err != nil {
		return err
	}
	group, err := versionOf(u.groupPath)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if u.byName != nil && passwd == u.passwd && group == u.group {
		return nil
	}
	accounts, err := readFile(u.passwdPath)
	if err != nil {
		return err
	}
	groups, err := readFile(u.groupPath)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	u.byName, u.userNames = parsePasswd(accounts)
	u.groupNames = parseGroup(groups, u.byName)
	u.passwd, u.group = passwd, group
	return nil
}

// Numbers of fields in a line of each file.
const (
	passwdFields = 7
	groupFields  = 4
)

// parsePasswd reads accounts. Lines that make no sense are skipped, and of two with one
// name or number the first counts, as in the C library.
func parsePasswd(data []byte) (map[string]User, map[uint32]string) {
	byName, names := make(map[string]User), make(map[uint32]string)
	eachLine(data, passwdFields, func(f []string) {
		uid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return
		}
		gid, err := strconv.ParseUint(f[3], 10, 32)
		if err != nil {
			return
		}
		user := User{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: f[5], Shell: f[6]}
		if user.Home == "" {
			user.Home = "/"
		}
		if user.Shell == "" {
			user.Shell = "/bin/sh" // as passwd(5) says
		}
		if _, taken := byName[user.Name]; !taken {
			byName[user.Name] = user
		}
		if _, taken := names[user.UID]; !taken {
			names[user.UID] = user.Name
		}
	})
	return byName, names
}

// parseGroup reads the names of groups, and adds to each user the groups that name it.
func parseGroup(data []byte, users map[string]User) map[uint32]string {
	names := make(map[uint32]string)
	eachLine(data, groupFields, func(f []string) {
		id, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return
		}
		gid := uint32(id)
		if _, taken := names[gid]; !taken {
			names[gid] = f[0]
		}
		for member := range strings.SplitSeq(f[3], ",") {
			user, ok := users[strings.TrimSpace(member)]
			if ok && user.GID != gid {
				user.Groups = append(user.Groups, gid)
				users[user.Name] = user
			}
		}
	})
	return names
}

func eachLine(data []byte, fields int, use func([]string)) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == '+' || line[0] == '-' {
			continue // comments, and the marks of NIS
		}
		if f := strings.Split(line, ":"); len(f) >= fields && f[0] != "" {
			use(f)
		}
	}
}
