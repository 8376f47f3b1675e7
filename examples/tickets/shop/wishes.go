package shop

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
)

// wishes are what a customer would like to see here, in the order in which they were wished for.
type wishes struct {
	Wishes []string `json:"wishes"`
}

func (s *Shop) wishes(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	var list wishes
	err = s.DB.QueryRow(r.Context(), `SELECT wishes FROM customers WHERE id = $1`, who).Scan(&list.Wishes)
	if errors.Is(err, pgx.ErrNoRows) {
		return answer{http.StatusNotFound, "this shop does not know you"}
	} else if err != nil {
		return fmt.Errorf("wishes of customer %s: %w", who, err)
	}
	return writeJSON(w, http.StatusOK, list)
}

// wish appends to the list and answers with all of it. Unlike the rest of the shop it does not notice a repetition:
// whoever wishes twice gets two entries.
func (s *Shop) wish(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	var body struct{ Wish string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Wish == "" || len(body.Wish) > 100 {
		return answer{http.StatusBadRequest, `want {"wish": "text of 1 to 100 bytes"}`}
	}
	var list wishes
	err = s.inTx(r.Context(), func(look *pgx.Batch) {
		look.Queue(`UPDATE customers SET wishes = array_append(wishes, $2) WHERE id = $1 RETURNING wishes`, who, body.Wish).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&list.Wishes)
			if errors.Is(err, pgx.ErrNoRows) {
				return answer{http.StatusNotFound, "this shop does not know you"}
			}
			return err
		})
	}, nothing)
	if err != nil {
		return fmt.Errorf("wish of customer %s: %w", who, err)
	}
	return writeJSON(w, http.StatusOK, list)
}
