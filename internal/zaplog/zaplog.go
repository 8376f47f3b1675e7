// Package zaplog hands to slog what libraries log with zap.
//
// The main function is [New]. Such libraries say much at info, which is debug to an operator of Atoll.
package zaplog

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

type core struct {
	out    slog.Handler
	prefix string
	fields []zapcore.Field
}

// New makes a zap core that writes to log; prefix says whose words they are.
func New(log *slog.Logger, prefix string) zapcore.Core {
	return core{out: log.Handler(), prefix: prefix}
}

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

func (c core) Enabled(l zapcore.Level) bool {
	return c.out.Enabled(context.Background(), slogLevel(l))
}

func (c core) With(fields []zapcore.Field) zapcore.Core {
	c.fields = append(c.fields[:len(c.fields):len(c.fields)], fields...)
	return c
}

func (c core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	r := slog.NewRecord(e.Time, slogLevel(e.Level), c.prefix+e.Message, 0)
	for _, list := range [][]zapcore.Field{c.fields, fields} {
		for _, f := range list {
			f.AddTo(enc)
			if v, ok := enc.Fields[f.Key]; ok {
				r.AddAttrs(slog.Any(f.Key, v))
			}
		}
	}
	return c.out.Handle(context.Background(), r)
}

func (c core) Sync() error { return nil }
