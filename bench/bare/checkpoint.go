package bare

import (
	"context"
)

// Checkpoint writes the container down into dir, an empty directory, and ends it, or lets
// it run on.
func (c *Container) Checkpoint(ctx context.Context, dir string, runOn bool) error {
	args := []string{"checkpoint", "--image-path=" + dir}
	if runOn {
		args = append(args, "--leave-running")
	}
	return c.peer.Call(ctx, append(args, c.ID)...)
}

// Clear makes room for a Restore: it removes what is left of the container after a
// checkpoint, and gives its namespace the address again that runsc took.
func (c *Container) Clear(ctx context.Context) error {
	if err := c.peer.Call(ctx, "delete", "--force", c.ID); err != nil {
		return err
	}
	return within(c.net, addAddress)
}

// Restore creates the container from a checkpoint of it, or of one like it. It returns when
// runsc does; what its first process writes from then on is Output.
func (c *Container) Restore(ctx context.Context, dir string) error {
	if err := c.create(ctx); err != nil {
		return err
	}
	return c.peer.Call(ctx, "restore", "--image-path="+dir, "--detach", c.ID)
}
