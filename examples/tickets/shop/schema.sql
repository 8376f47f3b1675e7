-- The ticket shop's tables. Nothing here knows of Atoll; what matters for running at several sites is how they are cut:
--   * every id is a UUID, so two sites never hand out the same one;
--   * the customer's id is part of the primary key of everything that belongs to a customer: one customer's rows live
--     and move together, and a transaction touches one customer only;
--   * foreign keys stay within the customer's rows, or within the catalogue. An order names its seat, but the seat may
--     be written at another site: what belongs together across that line is kept together by a reservation, an outbox
--     and a refund, not by a constraint.

CREATE TABLE IF NOT EXISTS customers (
    id           uuid PRIMARY KEY,
    name         text NOT NULL,
    orders_count int  NOT NULL DEFAULT 0,      -- numbers a customer's orders: 1, 2, 3, without gaps
    address      text NOT NULL DEFAULT '',     -- where printed tickets go
    wishes       text[] NOT NULL DEFAULT '{}'  -- what they would like to see here, in the order of wishing
);

CREATE TABLE IF NOT EXISTS orders (
    customer_id uuid NOT NULL REFERENCES customers,
    id          uuid NOT NULL,
    number      int  NOT NULL,
    seat_id     uuid NOT NULL,
    event       text NOT NULL,                 -- as printed on the ticket
    seat        text NOT NULL,                 -- as printed on the ticket
    price_cents int  NOT NULL,
    status      text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'confirmed', 'refunded', 'cancelled')),
    note        text NOT NULL DEFAULT '',
    site        text NOT NULL DEFAULT current_setting('cluster_name'), -- the database server that committed the order
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (customer_id, id),
    UNIQUE (customer_id, number)
);

CREATE TABLE IF NOT EXISTS payments (
    customer_id  uuid NOT NULL,
    id           uuid NOT NULL,
    order_id     uuid NOT NULL,
    amount_cents int  NOT NULL,
    status       text NOT NULL DEFAULT 'captured' CHECK (status IN ('captured', 'refunded')),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (customer_id, id),
    FOREIGN KEY (customer_id, order_id) REFERENCES orders
);

-- What still has to be said to the catalogue about an order. Written in the order's own transaction.
CREATE TABLE IF NOT EXISTS outbox (
    customer_id uuid NOT NULL,
    id          uuid NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('confirm', 'release')),
    order_id    uuid NOT NULL,
    seat_id     uuid NOT NULL,
    attempts    int  NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at     timestamptz,
    PRIMARY KEY (customer_id, id),
    FOREIGN KEY (customer_id, order_id) REFERENCES orders
);
CREATE INDEX IF NOT EXISTS outbox_open ON outbox (next_try_at) WHERE done_at IS NULL;

CREATE TABLE IF NOT EXISTS events (
    id        uuid PRIMARY KEY,
    title     text NOT NULL,
    venue     text NOT NULL,
    starts_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS seats (
    id             uuid PRIMARY KEY,
    event_id       uuid NOT NULL REFERENCES events,
    label          text NOT NULL,
    price_cents    int  NOT NULL,
    reserved_by    uuid,                       -- order
    reserved_for   uuid,                       -- the order's customer
    reserved_until timestamptz,
    sold_to        uuid,                       -- order
    CHECK (sold_to IS NULL OR sold_to = reserved_by),
    CHECK (num_nulls(reserved_by, reserved_for, reserved_until) IN (0, 3))
);
CREATE INDEX IF NOT EXISTS seats_unsold ON seats (event_id, id) WHERE sold_to IS NULL;
