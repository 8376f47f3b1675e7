package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/atollhq/atoll/topo"
)

// Backup writes a snapshot of the store as of one member that stands with the quorum, and says which. Its last 32 bytes
// are the SHA-256 of what stands before them; a copy without them is not whole.
func (c *Client) Backup(ctx context.Context, w io.Writer) (topo.SiteID, error) {
	var failures []error
	for _, i := range c.order() {
		m := c.members[i]
		try, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), 4*c.cfg.Try)
		_, err := m.etcd.Get(try, c.keys.ownership(), clientv3.WithCountOnly()) // linearizable: the member is not behind
		cancel()
		if err == nil {
			return m.Site, c.snapshot(ctx, m, w)
		}
		failures = append(failures, fmt.Errorf("%s at %s: %w", m.Site, m.Addr, err))
	}
	return "", fmt.Errorf("store: backup: %w: %w", ErrUnavailable, errors.Join(failures...))
}

// snapshot is not begun anew at another member: w has a part of it by then.
func (c *Client) snapshot(ctx context.Context, m *clientMember, w io.Writer) error {
	r, err := m.etcd.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("store: backup from %s: %w", m.Site, err)
	}
	defer r.Close()
	if _, err := io.Copy(w, r); err != nil {
		return fmt.Errorf("store: backup from %s: %w", m.Site, err)
	}
	return nil
}

// ErrBackupDamaged: a backup file is not what was written.
var ErrBackupDamaged = errors.New("its checksum is not that of its content: it is not whole, or was changed")

// CheckBackup reads a backup file and compares its checksum.
func CheckBackup(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("store: backup: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("store: backup: %w", err)
	}
	size := info.Size() - sha256.Size
	if size <= 0 || size%512 != 0 {
		return fmt.Errorf("store: backup %s: %w", path, ErrBackupDamaged)
	}
	sum, want := sha256.New(), make([]byte, sha256.Size)
	if _, err := io.CopyN(sum, f, size); err != nil {
		return fmt.Errorf("store: backup %s: %w", path, err)
	}
	if _, err := io.ReadFull(f, want); err != nil {
		return fmt.Errorf("store: backup %s: %w", path, err)
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return fmt.Errorf("store: backup %s: %w", path, ErrBackupDamaged)
	}
	return nil
}
