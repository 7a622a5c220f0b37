"""A seeded simulator of the authority: its real code on a disk and a clock that fail when the seed says so.

    make simulate [SEED=1] [STEPS=1000000]

One seed is one story: pods come and go, gates reserve, put intents and outcomes on record, settle and release, ask and
get tokens that they try again and again; people answer, make accounts, top up and charge; the wall clock jumps; a write
fails or tears, a sync fails, SQLite refuses, the process is killed before, inside or after any of these, or the power
goes and takes what was not synced. After every turn, after every start and at the end of every episode it is checked:

 1. `spent + reserved <= limit`, nothing negative, at every level, in memory and in the file alike.
 2. Every reservation resolves exactly once; what a pod has spent is the sum of what the log says it was charged.
 3. No token is taken twice, nor after a start of the authority, nor for another pod or operation.
 4. Every effect (its intent was acknowledged) has that intent in the log, and an end; every acknowledged outcome is
    there as it was acknowledged, whatever crashed.
 5. The log verifies at each start, and nothing that was acknowledged is missing.
 6. A top-up, an account or a charge that was acknowledged is there, once, whatever was repeated.

What is simulated: the process's death at any system call of the stores, torn and failing writes and syncs, the loss of
unsynced bytes of the log, the checkpoints and SQLite's WAL. What is taken for granted: SQLite's own atomicity, and that
a file system keeps renames in order.
"""
