"""Expert parallelism: every routed expert on one device of the mesh's expert axis. Dropless.

Each device plans its own tokens and sends every token once to each device that holds some of its
experts. It runs its own experts on what arrives and returns one sum a token. Room for arrivals is a
fixed multiple of the balanced load. What does not fit comes in further rounds of the same exchange
until nothing is left, in backward as in forward. Every device runs the same number of rounds. One
is the rule: its activations are kept, those of later rounds are recomputed in backward. Padding is
sent nowhere: it takes no room and no products, and gets zeros.

  ffn.py        what a layer calls on such a mesh; makes each device's experts from what it stores
  rounds.py     which tokens go in which round; all rounds, with their gradient
  exchange.py   one round: to the experts' devices by a transport, through the experts, and back
  capacity.py   room for one round
  telemetry.py  what a layer measures of its exchange

On one device: T tokens, K choices, P devices along the expert axis, E experts in all and
G = ⌈E / P⌉ here, D width, c slots from one device to another in one round, A = P · c slots to send
or to receive, R assignments that fit.
"""
