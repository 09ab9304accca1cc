package watch

import "golang.org/x/sys/unix"

// mountKind is where the content of a file system comes from, as far as it matters here.
type mountKind uint8

const (
	local   mountKind = iota
	network           // from another machine, or from a program
	made              // made up by the kernel when it is looked at
)

// The file systems whose changes from elsewhere inotify does not see, and those that are
// not worth entering. The numbers are of linux/magic.h, and three of their own drivers.
//
// 9p is not among the first: it is how a gVisor sandbox sees directories of its host.
const (
	cifsMagic = 0xff534d42
	smb2Magic = 0xfe534d42
	cephMagic = 0x00c36400
)

func kindOf(path string) (mountKind, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return local, err
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.AFS_SUPER_MAGIC,
		unix.CODA_SUPER_MAGIC, unix.NCP_SUPER_MAGIC, cifsMagic, smb2Magic, cephMagic:
		return network, nil
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC,
		unix.PSTOREFS_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return made, nil
	}
	return local, nil
}
