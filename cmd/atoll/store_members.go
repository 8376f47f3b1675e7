package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) storeMembers() *cobra.Command {
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "members",
		Short: "list the store's members, and how they are",
		Long: `Lists every member of the store and of the spec: whether it votes or still learns, who leads, how far each has come, and what
is wrong. Ends with 2 if a member is not healthy.`,
		Example: `  atoll store members
  atoll store members --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withAgent(cmd, op, func(_ *spec.Spec, client *api.Client) error {
				all, err := client.StoreMembers(cmd.Context())
				if err != nil {
					return err
				}
				return c.reportMembers(cmd.OutOrStdout(), all)
			})
		},
	}
	op.flags(cmd)
	return cmd
}

// withAgent calls f with the spec and an agent that answers.
func (c *cli) withAgent(cmd *cobra.Command, op *operator, f func(*spec.Spec, *api.Client) error) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	if len(s.Policies.Store.External) > 0 {
		return errors.New("the store is an external etcd (policies.store.external): its members are cared for with its own tools")
	}
	client, err := op.client(cmd.Context(), s)
	if err != nil {
		return err
	}
	defer client.Close()
	return f(s, client)
}

func (c *cli) reportMembers(out io.Writer, all api.StoreMembers) error {
	if c.json {
		if err := printJSON(out, all); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "MEMBER\tADDRESS\tROLE\tINDEX\tLAG\tHEALTH")
		for _, m := range all.Members {
			role, index, lag := m.Role, "-", "-"
			if m.Leader {
				role = "leader"
			}
			if m.Healthy {
				index, lag = fmt.Sprint(m.Index), fmt.Sprint(m.Lag)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", plain(string(m.Member)), orDash(plain(m.Client)), orDash(role), index, lag, health(m))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintf(out, "%d of %d voters answer; a decision needs %d\n", all.Healthy, all.Voters, all.Quorum)
		if all.Problem != "" {
			fmt.Fprintf(out, "! not confirmed by a quorum, as one member remembers it: %s\n", plain(all.Problem))
		}
	}
	if all.Problem != "" {
		return &statusError{errors.New("the store has no quorum"), 2}
	}
	for _, m := range all.Members {
		if !m.Healthy {
			return &statusError{fmt.Errorf("member %s is not healthy", m.Member), 2}
		}
	}
	return nil
}

func health(m api.StoreMember) string {
	if m.Healthy {
		return "ok"
	}
	return plain(m.Problem)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (c *cli) storeAdd() *cobra.Command {
	var why string
	var bound time.Duration
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "add MEMBER",
		Short: "let a member that the spec names join the running store",
		Long: `Adds the member as a learner, without a vote; waits until its process runs (atoll store --site MEMBER, by whoever operates that
site) and has taken over what the others have; then gives it its vote. Nothing is lost if this command is interrupted, or
the member dies: run it again, it goes on where it finds the member.

It is refused where the store would be without a quorum with one voter more. To replace a member whose disk was lost:
atoll store remove MEMBER, then this. Agents use a new member once they are restarted on the edited spec.`,
		Example: `  atoll store add d
  atoll store add d --wait 10m --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withAgent(cmd, op, func(s *spec.Spec, client *api.Client) error {
				member := topo.SiteID(args[0])
				here := s.Sites[member]
				if here == nil || here.Store == nil {
					return fmt.Errorf("%s gives %s no store; put one there first: store: {client: HOST:PORT, peer: HOST:PORT}", c.file, member)
				}
				ctx, cancel := context.WithTimeout(cmd.Context(), bound)
				defer cancel()
				answer, err := addMember(ctx, cmd.ErrOrStderr(), client, api.StoreAddRequest{Member: member, Peer: here.Store.Peer, Why: why})
				if err != nil {
					return err
				}
				if c.json {
					return printJSON(cmd.OutOrStdout(), answer)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "member %s has a vote\n", member)
				return err
			})
		},
	}
	op.flags(cmd)
	cmd.Flags().StringVar(&why, "why", "", "reason, for the audit")
	cmd.Flags().DurationVar(&bound, "wait", 5*time.Minute, "give up waiting after this; what was done stays")
	return cmd
}

// addMember takes one step after the other, and says each once. What fails in passing is tried again until ctx ends.
func addMember(ctx context.Context, out io.Writer, client *api.Client, req api.StoreAddRequest) (api.StoreAddAnswer, error) {
	text := map[string]string{
		string(store.Waiting):  fmt.Sprintf("added as a learner; waiting for its process: atoll store --site %s", req.Member),
		string(store.Learning): "it takes over what the others have",
		string(store.Voting):   "it has its vote",
	}
	said := ""
	for {
		answer, err := client.StoreAdd(ctx, req)
		var refused *api.Error
		switch {
		case err == nil && answer.Standing == string(store.Voting):
			return answer, nil
		case err != nil && ctx.Err() == nil && errors.As(err, &refused) && refused.Code != api.CodeUnavailable:
			return answer, err
		case err == nil && answer.Standing != said:
			said = answer.Standing
			fmt.Fprintf(out, "member %s: %s\n", req.Member, text[said])
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return answer, fmt.Errorf("member %s has no vote yet (%s): %w; run this again to go on", req.Member, orDash(said), errors.Join(context.Cause(ctx), err))
		}
	}
}

func (c *cli) storeRemove() *cobra.Command {
	var req api.StoreRemoveRequest
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "remove MEMBER",
		Short: "take a member out of the store",
		Long: `The member loses its vote, and its process ends. It is refused if the others that answer the agent would be no quorum;
--force does not count who answers the agent, for members that are cut off from it only: etcd still refuses if they do not
answer each other either. A removed member comes back with an empty folder and atoll store add.`,
		Example: `  atoll store remove w --why "its machine is gone"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withAgent(cmd, op, func(_ *spec.Spec, client *api.Client) error {
				req.Member = topo.SiteID(args[0])
				answer, err := client.StoreRemove(cmd.Context(), req)
				if err != nil {
					return err
				}
				if c.json {
					return printJSON(cmd.OutOrStdout(), answer)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "member %s is removed\n", req.Member)
				return err
			})
		},
	}
	op.flags(cmd)
	cmd.Flags().StringVar(&req.Why, "why", "", "reason, for the audit")
	cmd.Flags().BoolVar(&req.Force, "force", false, "do not count who answers the agent")
	return cmd
}

func (c *cli) storeBackup() *cobra.Command {
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "write a snapshot of the store, with its checksum",
		Long: `Writes what the store holds at this moment to FILE: ownership, leases, handovers, audit; no data of the application. The last
32 bytes are the SHA-256 of the rest, and are compared before FILE is there. An existing FILE is replaced at once, or not at all.

A backup is for the day when every member's folder is lost: what has happened since, atoll store recover reads from the
sites' databases.`,
		Example: `  atoll store backup /var/backups/shop.store`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withAgent(cmd, op, func(_ *spec.Spec, client *api.Client) error {
				size, err := backup(cmd.Context(), client, args[0])
				if err != nil {
					return err
				}
				if c.json {
					return printJSON(cmd.OutOrStdout(), map[string]any{"file": args[0], "bytes": size})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes, checksum good\n", args[0], size)
				return err
			})
		},
	}
	op.flags(cmd)
	return cmd
}

func backup(ctx context.Context, client *api.Client, file string) (size int64, err error) {
	part := file + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer os.Remove(part) // fails once it is in place
	err = client.StoreBackup(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	if info, e := f.Stat(); e == nil {
		size = info.Size()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = store.CheckBackup(part)
	}
	if err == nil {
		err = os.Rename(part, file)
	}
	return size, err
}
