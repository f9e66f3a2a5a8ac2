"""Expert parallelism: every routed expert on one device of the mesh's expert axis. Dropless.

Each device plans its own tokens and sends every token once to each device that holds some of its
experts. It runs its own experts on what arrives and returns one sum a token. Room for arrivals is a
fixed multiple of the balanced load. What does not fit comes in further rounds of the same exchange
until nothing is left, in backward as in forward. How many, is the same on every device. One round
is the rule: it keeps its activations, later ones are computed again in backward. Padding goes
nowhere: it takes no room and no products, and gets zeros.

  ffn.py        what a layer calls on such a mesh; each device's experts from how they are stored
  rounds.py     which tokens go in which round; all rounds, with their gradient
  exchange.py   one round: there by a transport, through the experts, and back
  capacity.py   room for one round
  telemetry.py  what a layer tells of its exchange

Of one device: T tokens, K choices, P devices along the expert axis, E experts in all and
G = ⌈E / P⌉ here, D width, c slots from one device to another in one round, A = P · c slots to send
or to receive, R assignments that fit.
"""
