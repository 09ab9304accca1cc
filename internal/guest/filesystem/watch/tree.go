package watch

import "path/filepath"

// node is one watched directory.
type node struct {
	wd       int32
	name     string
	parent   *node // nil for the root
	children map[string]*node

	// seen are the names whose creation has been told because they were there when the
	// directory was first listed. What the kernel has queued of it until then, at positions
	// before seenUntil, may tell it again.
	seen      map[string]struct{}
	seenUntil int64
}

// rel returns the path of name in n, relative to the root.
func (n *node) rel(name string) string {
	if n.parent == nil {
		return name
	}
	for ; n.parent != nil; n = n.parent {
		name = n.name + "/" + name
	}
	return name
}

// path returns the node's own path, below root.
func (n *node) path(root string) string {
	if n.parent == nil {
		return root
	}
	return filepath.Join(root, n.parent.rel(n.name))
}

// within says whether n is other, or below it.
func (n *node) within(other *node) bool {
	for ; n != nil; n = n.parent {
		if n == other {
			return true
		}
	}
	return false
}

// detach takes n out of its parent, unless another has taken its place there already.
func (n *node) detach() {
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
}

// attach makes n the child of parent with this name.
func (n *node) attach(parent *node, name string) {
	n.detach()
	n.parent, n.name = parent, name
	if parent.children == nil {
		parent.children = make(map[string]*node)
	}
	parent.children[name] = n
}

// told says whether the creation of name has been told already when the kernel tells it at
// this position, and forgets that it was.
func (n *node) told(name string, position int64) bool {
	if position >= n.seenUntil {
		n.seen = nil
	}
	_, told := n.seen[name]
	delete(n.seen, name)
	return told
}
