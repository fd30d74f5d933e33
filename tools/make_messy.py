"""A help desk's mail with planted, listed defects: the file that notebook 07 cleans.

Clean rows grow from one grammar, in which `[this|that]` is a choice and `{slot}` a fact of the customer's case, so that
the answer fits the mail. They have so little in common, each pair below 0.4, that a Jaccard threshold of 0.72 to 0.82
finds the planted copies and nothing else. Kinds `look-alike` and `decoy` are traps: they only seem wrong and should stay.

Shop, products and names are invented; card numbers, IBAN, phone numbers and keys are documented examples or plainly
fake. The texts are Apache-2.0. `python -m ftkit.messy` rewrites the three files in `ftkit/samples`.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

CLEAN = {"reply": 150, "extract": 90, "summarise": 90, "route": 90}

SURPLUS = 240  # further replies: more than half of the file then asks for one task

TEST = 10  # clean test rows a task

LOOK_ALIKE, NEAR, SAME = (0.55, 0.72), (0.82, 0.97), (0.8, 1.0)  # ranges of the Jaccard index

JACCARD = "Shared over all 5-word shingles of two texts; words are the matches of \\w+ after NFKC and casefold; the text is instruction + '\\n\\n' + input (the prompt), with '\\n' + output after it for prompt plus answer. Near-duplicates and look-alikes keep to their range in both."

ABOUT = "Defects of messy.jsonl. Lines count from 1; `original` is the line that a copy was made from, `test_line` a line of messy_test.jsonl; a row with `keep` only seems wrong."

Row = dict[str, str]

Defect = dict[str, Any]

# Two lines a problem: products // team // its job // details // gist // wish => action // wish => action; then how it is told.
PROBLEMS = """
[{home}|{electric}] // Returns desk // [damaged goods are replaced or refunded there|that team settles damage in transit] // a crack right across the base|a dent on the left side|a broken corner|deep scratches on the front|a chipped edge|a hole in the back panel // the {thing} [arrived|came|was delivered] with {detail} // [receive|get|be sent] a [replacement|flawless one] => We [will send|are sending] a new {thing} [today|tomorrow|within two working days], and [you may keep|there is no need to return] the damaged one. // [keep it at a lower price|keep it for part of the money] => Keep the {thing}, and we will [credit|refund] a [fifth|quarter|third] of the {price} [to your card|this week|by the same way that you paid].
[[When I opened the box|As soon as I had it out of the box|On unpacking it [this morning|last night]], I [found|saw|noticed] {detail}[, although the [carton|parcel|outer box] looked [fine|untouched|perfect]|, and the padding was [hardly there|a single sheet of paper]]. [I have not used it|It has not left the hallway since|I put it straight back], [so it must have happened on the way|so this is nothing that we did|and the packaging is still here].|The courier [handed me|left] a [box|carton] that [rattled|was wet on one side|had clearly been dropped], and [inside|sure enough] the {thing} [has|shows|came with] {detail}. [I took photos before touching anything|My neighbour saw it too|You could see it from across the room], [in case you need proof|so there should be no argument about it].|The {thing} itself is [pretty|just what I wanted|exactly the right colour], but it has {detail}, [which nobody could miss|and no amount of glue will hide it]. [Somebody must have|I suppose someone] packed it [like that|in a hurry|without looking], [because the box had no mark at all|since the foam around it was whole].]
[{home}|{electric}|{clothes}] // Returns desk // [mix-ups in packing are put right there|that team sorts out swapped parcels] // a set of tea towels|two dog bowls|a garden hose|a jigsaw puzzle|a box of candles|a pair of curtains|a paddling pool // {detail} came [in place of|instead of] the {product} // have the right [item|{thing}] [sent|delivered] => The right {product} leaves [our warehouse|the depot] [today|tomorrow morning|by Thursday], and the driver will [collect|pick up] the wrong item [at the same time|free of charge]. // [return it|hand it back] and be refunded => [Please use the label in this reply|A courier will fetch the parcel]; {price} goes back to [your card|the account you paid from] [as soon as|once] it [is scanned|reaches us].
[[Instead of|In place of] the {thing} [I found|I unpacked|the box held] {detail}[, neatly wrapped|, with somebody else's packing slip|, which made my children laugh]. The [label outside|packing slip|sticker] [does say|names|still shows] the {product}, so [the mix-up happened at your end|two parcels were swapped|someone reached into the wrong shelf].|[The parcel was quick|Delivery was fast|The box came in good shape], but [it contained|what I pulled out was|inside lay] {detail} [and nothing else|and no {thing} at all|in spite of what the slip claims]. I [have no use for that|have left it all unopened|put everything aside], and [I guess another customer is now looking at my {thing}|someone is surely missing it].]
[{home}|{electric}|{clothes}] // Delivery team // [that team can ask the carrier for a trace|overdue parcels are that team's job] // four days overdue|a week overdue|nine days overdue|more than two weeks overdue|five working days overdue|twelve days overdue // the {thing} is {detail} [and has not arrived|and still on its way] // [know|find out|hear] [where it is|on which day to expect it] => We have asked the carrier to [trace|look for] the parcel and will [write|send you an update] [by tomorrow noon|within 24 hours|as soon as we have an answer]. // cancel it unless it [arrives|comes] by Friday => If [it is not|the parcel is not] with you by Friday, we will cancel the order and refund the {price} [without further questions|in full|on Saturday].
[The [parcel|package|delivery] is now {detail}, and the tracking page [has said 'in transit'|has not moved|shows the same depot] [since the weekend|for days|since I first looked]. [I stayed at home twice|I took an afternoon off|My wife waited in] for [nothing|a van that never came|no reason at all][, and the slot passed without a word|].|[Your confirmation promised|The shop page promised|I was told to expect] delivery [within three days|by the end of that week|in two to four days], yet the {thing} is {detail}. [The carrier's hotline|The courier's chat|The depot] [only repeats|just tells me|keeps saying] that [the sender must ask|a scan is missing|everything is normal], [which helps nobody|and then hangs up|so I turn to you].]
[{home}|{electric}|{clothes}] // Delivery team // [lost parcels are looked for there|that team opens inquiries with the carrier] // in the letter box|with a neighbour on the second floor|at the back door|in the garage|in a locker by the station|behind the bins|with the concierge // the {thing} is said to be {detail}, but [is not there|is missing|was not found] // have the courier [asked|questioned] about it => We have opened an inquiry with the carrier, which takes [up to five|three to five] days; if nothing turns up, a new {thing} [will follow|goes out] [at our cost|free of charge]. // [get|receive|be sent] a second one => [Since the parcel was insured|As the parcel was insured], we will send another {product} [today|tomorrow] and [settle|sort out] the loss with the carrier ourselves.
[Tracking [claims|says|insists] that the parcel was left {detail} [on Tuesday|at noon|yesterday evening|two days ago], but I [looked|searched] there [twice|three times|with a torch] and [there is no {thing}|found nothing]. [Nobody in the house has seen it|We have no such place here|The neighbours know nothing either][, and the signature is a scribble|].|According to the [courier|driver's note|delivery photo], it [was dropped|has been waiting|was put] {detail}. [That would be nice|I wish it were so|That cannot be right], [but|because] [the photo shows a different door|we were home all day|no bell rang], [and the {thing} is [nowhere|not here|gone]|so I wonder who has it].]
[{home}|{electric}|{clothes}] // Billing team // [only that team can reverse a payment|double payments are undone there] // on the card statement|on the bank statement|in the banking app|on the monthly bill // {price} was charged twice for [one {thing}|a single {thing}] // have the [second|extra|surplus] payment [returned|refunded|reversed] => The second payment of {price} [has been|was] [released|reversed] [just now|today] and [should|will] [appear|show up] in [three to five|two to four] working days. // [see|get] in writing that only one payment [stands|counts] => Only one payment of {price} stands: the other is [a reservation|an authorisation] that lapses [within a week|after seven days], and [a written note is attached|we attach that in writing].
[{price} [was taken|went off|has been booked] twice [within one minute|on the same day|for the same thing], as I can see {detail}. [The pay button spun for ages|The checkout showed an error] [when I paid|at the last step], so [I pressed it again|perhaps it counted both clicks|I suspect it sent two requests], [but I only [received|want|asked for] one {thing}].|There are two debits of {price} {detail}[, one right below the other|, a day apart|, with the same reference], [and yet|although] I [bought|received|ordered] just one {thing}. [My bank says|The bank told me|They tell me at the branch] that [the merchant has to|only you can|the shop must] [undo|reverse|release] [it|the second one].]
[{home}|{electric}|{clothes}] // Billing team // [refunds are paid out there|that team follows up refunds that got stuck] // three weeks ago|more than a month ago|sixteen days ago|on the first of the month|nearly three weeks ago // the refund of {price} for the returned {thing} [has not arrived|is overdue|is missing] // [learn|know|be told] [when the money will come|what holds it up] => The refund of {price} [got stuck|was held up] [in a check|by a missing scan]; it [leaves|goes out] today and takes [two or three|up to four] working days. // have it paid out [now|at once|this week] => We have released the {price} by hand [this morning|a moment ago], so [your bank should show it|it should be with you] [by Friday|before the week ends|in three days].
[I [sent|posted|took] the {thing} back {detail} and [hold a receipt|have the counter slip|kept the proof of postage], but the {price} [has not come back|never reached my account|is still missing]. [The return page|Your site] [says 'completed'|shows a green tick|calls the case closed], [which is puzzling|which sounds like a joke to me|so the money should be here].|My return [was accepted|was confirmed|was scanned at your depot] {detail}. [Two messages|A form|A call] later I [still wait for|have not seen|am still missing] the refund of {price}[, and the {thing} is obviously no longer with me|, while your terms promise fourteen days|].]
{electric} // Repairs team // [faults are diagnosed there|that team handles repairs under the warranty] // it no longer switches on|it shuts down after a minute|the light blinks red and nothing follows|it hums but does not start|it only runs when the cable is held at an angle|the display stays black // the {thing} has a fault: {detail} // [try|be told about] [a fix|a repair step] before [sending it in|posting it] => Please [hold the power button for ten seconds|press reset with a pin|unplug the {thing} for an hour] and [try again|start it once more]; if [nothing changes|that fails], we [will repair it|will take it in] [under warranty|at our cost]. // have it [repaired|exchanged] under the warranty => The warranty covers this: [print|use] the attached label, [pack the {thing} without its accessories|leave the accessories out], and [a working one|its successor] follows within [a week|six working days].
[It [worked|ran|behaved] [well|without a hitch|perfectly] [for ten days|for a fortnight|until last night|for about a month], but now {detail}. [I tried another socket|I changed the fuse|I left it unplugged overnight], [read the booklet twice|asked a handy neighbour|searched your help pages] and [ran out of ideas|got nowhere|am none the wiser].|Since [the weekend|Monday|last Thursday] {detail}, [whatever I do|no matter which socket I use|even after a full reset]. [Nothing was spilled|It was never dropped|We treat it gently], [so I suspect the [power unit|switch|wiring]|so it can hardly be our fault], and [a {thing} for {price} should last longer|I had expected more of it].]
[{home}|{electric}] // Parts desk // [single parts are kept there|that team posts missing parts] // the bag of screws|the short connecting piece|one of the four feet|the printed manual|the small key|the rear cover|the mounting bracket // {detail} was missing from the box of the {thing} // [get|be sent|receive] the missing part [by letter post|quickly] => We are posting {detail} [today|by priority mail|tomorrow morning]; it [needs|takes] [two|about three] days and [costs you nothing|is free]. // [swap|exchange] the whole box for a complete one => A [complete|checked] {product} [is set aside|is reserved] for you; [hand|give] the driver the old box when it comes [on Thursday|next week].
[[Everything is here except|The one thing I cannot find is|What is missing is] {detail}. [I checked every fold of the carton|I emptied the box on the carpet|I looked under the foam], [and my son searched it again|twice in fact|and then went through the paper], [but without it the {thing} [cannot be used|is of no use|stays in its box]|and the list says that it belongs there].|[Halfway through setting it up|At step three of the leaflet], I [noticed|found|realised] that {detail} [was not in the box|had not been packed|is missing]. [There is an empty bag with its number|The slot for it in the foam is empty], so the {thing} [stands in a corner|is waiting half finished|cannot be used yet].]
{clothes} // Returns desk // [sizes are exchanged there|that team looks after exchanges] // too tight across the shoulders|too long in the sleeves|a whole size too large|too short at the back|far too narrow at the waist // the {thing} is {detail} // [swap|exchange] it for [another|the right] size => [An exchange is no trouble|We are happy to swap it]: [tell us|just reply with] the size you need, and the new {thing} [leaves|is posted] [the same day|within a day]. // [return it|send it back] and be refunded => Please [return|send back] the {thing} within [thirty days|four weeks] with the label in the parcel; {price} [follows|is refunded] [three days later|once it is here].
[I [followed|trusted|measured by] your size chart, but the {thing} is {detail}. [The colour and the cloth are lovely|It is well made|The fabric is wonderful], [so I would hate to lose it|and it deserves someone whom it fits], and [the tags are still on|it was only tried on in the hall|I kept the wrapping].|[Sadly|Alas|To my surprise] it is {detail}, [although I always take that size|though the same size from your spring range fits|and I wear this size everywhere else]. [My daughter laughed|The mirror was merciless|Even my aunt, who sews, gave up], [but the {thing} is otherwise perfect|so the {thing} lies unworn on a chair].]
[{home}|{electric}] // Order desk // [that team can stop an order before dispatch|orders are changed there until they leave] // my brother bought the same one|we are moving abroad|I clicked on the wrong colour|I found that we already own one|the room turned out to be too small|my plans for the summer fell through // the {thing} is [no longer wanted|not needed any more] and has not been sent // cancel [it|the order] and be refunded => Order {order} [is cancelled|has been stopped] [in time|before packing], and {price} [goes back|returns] to [your card|the same account] within [three|four] working days. // [change|turn] the order into a voucher => Done: instead of the {thing} you [now hold|receive] a voucher over {price}, [valid for two years|which never expires], [in your account|attached to this message].
[[There has been a change of plan|I have to change my mind|I was too quick]: {detail}, so the {thing} is [no longer needed|of no use to us now]. [Your site still says 'being prepared'|As far as I can see, it has not been packed], [and the cancel button is grey|but I find no button to stop it|so I hope this reaches you in time].|Please [stop|halt|do not send] the parcel [if you still can|before it leaves|today]. [The reason is simple|It is nobody's fault]: {detail}, and [a {thing} for {price} would only gather dust|it would only come straight back to you][, which costs us both time|].]
[{home}|{electric}|{clothes}] // Delivery team // [addresses of open parcels are changed there|that team can redirect a parcel] // the house number is missing|the street is my old one|I typed the wrong postcode|the parcel would go to my office, which is closed|the flat number was cut off // the delivery address of the {thing} is wrong[| and can no longer be edited online] // have it [corrected|changed] before [the parcel leaves|dispatch] => [Reply with|Send us] the full address [by five o'clock|today], and we will [print a new label|correct it] before the {thing} [leaves|is collected]. // have it [held|kept] at [the depot|a pick-up point] => The parcel has left, but [the carrier will hold|we had the carrier hold] the {thing} at the [nearest depot|pick-up point] [for seven days|until you come]; [a photo ID|your name] is enough.
[[I have just seen|Only now I see|The confirmation shows] that the [shipping|delivery] address is wrong: {detail}. [The {thing} is meant for a birthday|Nobody there would accept a {thing}|A stranger would end up with a {thing} worth {price}], [and your site no longer lets me edit it|but the edit link has gone|while the account page refuses the change].|[I made a mistake|Something slipped] in the address form: {detail}. [Your page|The order page] [locks the field|answers with an error|shows only a padlock] [when I try to mend it|as the order is 'in progress'], [and I can see the {thing} going round in circles|so the {thing} is about to get lost].]
[{home}|{electric}|{clothes}] // Billing team // [voucher codes are checked there|that team can correct a price afterwards] // 'code unknown'|'expired'|'not valid for this basket'|'already used'|'minimum not reached' // the voucher for the {thing} was refused with the message {detail} // have the discount [paid back|credited] [afterwards|now] => [The code was typed wrongly in our system|Our system had blocked the code by mistake]; the discount on your {thing} [will be|is] [credited|paid back] to [your card|your account] [this week|within three days]. // [get|receive] a new [code|voucher] for next time => [Please take|Here is] a new code, which you will find [in your account|under 'vouchers'] [from tomorrow|within the hour]; it [has no minimum|runs for a year] [and works on anything|and replaces the old one].
[[The voucher from your newsletter|My welcome code|The birthday voucher] was [refused|rejected] with the words {detail}, [although|even though] [it runs until the end of the year|I had never used it|the basket met every condition]. [I paid the full|So I ended up paying] {price} [because the last {thing} was about to go|to secure the {thing}|as there was one left], [which annoys me|and now feel cheated].|At the checkout your page [greeted|answered] my voucher with {detail}[, three times over|, in bright red|]. [I typed it exactly as printed|I copied it letter by letter|My partner tried it too], [so the fault is not mine|and no explanation came], [and the {thing} cost me|and I paid] the full {price}.]
[{home}|{electric}|{clothes}] // Billing team // [invoices are written there|corrected invoices come from there] // lists no tax|names a person instead of the firm|lists the wrong quantity|is an empty page|has the wrong year on it // the invoice for the {thing} {detail} // [get|receive|be sent] a corrected [invoice|one] => [A corrected invoice|A new invoice] over {price} is attached; [please destroy the old one|it replaces the first one], and [tell us|let us know] if your [accountant|bookkeeper] needs [another line|anything else]. // [have|get] it [on paper|by post] => [The billing team|We] will post a [signed|corrected] invoice for the {thing} [today|tomorrow]; [the letter|it] should reach you in [three|four] days.
[The invoice for the {thing} {detail}, [as I noticed today|which my accountant spotted at once|and I only saw it when filing]. [The tax office|My bookkeeper|Our auditor] [will not accept|cannot book|sends back] [it like this|such a paper], [and the quarter ends soon|and {price} is more than petty cash|so I have to ask].|[I downloaded|I opened|I printed] the invoice, [and sadly it|but it] {detail}. [I tried two browsers|The copy in my account is the same|A second download changed nothing], [so it seems to be the file itself|so the error must be yours], [and without a proper paper nobody pays me back for the {thing}|and I need it for the {thing}].]
[{electric}|{clothes}] // Account team // [only that team can reopen an account|logins are reset there] // the reset link has always expired|the code never arrives|the page jumps back to the start|it says that my password is too old|the account is locked after one try // the login for the papers of the {thing} [fails|does not work]: {detail} // have the [login|account] reset => We have [reset|unlocked] the account; [choose|please set] a new password [within an hour|today], and the papers of your {thing} will be [there|visible] [again|as before]. // [get|receive] the papers [directly|without the account] => The papers of your {product} are attached, [so that you need not wait|so you have them now], while we [look into|repair] the login [by Monday|this week].
[I cannot [get into|open] my account [any more|since the update]: {detail}. [I need the manual|I want to register the warranty|I wanted to look up the care notes] of the {thing}, [and everything is behind that door|and the guest page does not show it], [so I am stuck|which is maddening].|[Logging in has become impossible|Your login page and I are at war]: {detail}. [I emptied the cache|I tried my tablet too|A second browser behaves the same], [and it has been so since [Sunday|last week]|all without success], [so I cannot see|and I would like to check] [the papers|the details] of my {thing}.]
""".strip().splitlines()

# Tasks: instruction // answer; tones (warm, cross, brief): greeting // opening // closing // signature.
GRAMMAR = """
reply: [[Write|Draft|Compose] [[a|a short|a kind|a friendly|a helpful] reply|[an|a brief|a kind|a friendly|a polite] answer] to [this|the following] [customer's message|mail from a customer|message].] // [[Hello|Dear|Hi|Good day] {name}, [[thank you|thanks] for [telling us|your message|writing about order {order}]|we are sorry about this|sorry for the bother|I [can see|have found] order {order} here]. [We understand that {gist}.|I read that {gist}, and [I regret it|that is a pity].|It [seems|looks as if] {gist}, [which should not be|and we want to help].] {action} [[Write|Just write] [again|back] [if anything is unclear|should that not suit you].|[Kind|Warm|Friendly] regards from the help desk!|Thank you for your patience.|We hope that [helps|this settles it].|Have a [good|pleasant] [day|week]!]]
extract: [[Extract|List|Pick out|Give] the order number, the product and the problem[, one a line,| as three lines] from [this|the following] [message|mail|customer message].] // [Order number: {order}{line}Product: {product}{line}Problem: {gist}[; the customer wants to {wish}|, and the wish is to {wish}|].]
summarise: [[Summarise|Sum up|Condense] [this|the following] [message|mail|customer message] in [one or two sentences|two sentences at most|at most two sentences].] // [[{name}|The customer|A customer] [writes|reports|says|explains] that {gist}[ (order {order})|]. [They want|They would like|The customer asks|They hope] to {wish}.|[Order {order}|About order {order}]: {gist}[, says {name}|], [and the customer|so the customer] [wants|hopes|asks] to {wish}.|[{name}|The customer|A buyer of the {product}] [wants|hopes|asks|would like] to {wish}[, as|, because|, since] {gist}.]
route: [[Which team should [handle|get|answer] this [message|mail]|Who should take care of this [message|mail]]? [Answer in a full sentence with the reason.|Name it in a full sentence and say why.|Reply with one sentence that gives the reason.]] // [[This|The message|This mail|{name}'s message|Order {order}] [belongs to|should go to|is a case for|goes to] the {team}, [because|since|as] {gist}, and {job}.]
order: [[On {day} [I|we] [ordered|bought|chose] the {product} [from your shop|on your site] for {price}[; the order number is {order}|, order {order}|, and the confirmation says {order}].|[This|My message|This mail] is about [order|order number|purchase] {order}[, the|, that is the|: one] {product}, [paid on {day} with {price}|bought on {day} for {price}|{price}, placed on {day}].|[My|Our] order {order} [of|from] {day} was [for the|a single item, the] {product} [at|for] {price}.|[Order|Reference] {order}, {day}: {product}, {price}[, paid by card|, paid at once|].|[I|We] paid {price} for the {product} on {day} and [got|received|noted] the number {order}.]]
ask: [[I would like to|I want to|I am hoping to|All I want is to|What I ask is to|My wish is to|Ideally I would] {wish}[.|, please.|, if that is possible.|, and soon.|, nothing more.]|[Could I|Can I|May I] {wish}[?|, please?]|[Would it be possible|Is there a way|Is it too late] to {wish}?]
aside: [[It was meant as|It is] a [gift|present|surprise] for [my aunt|a friend|my father-in-law|our neighbour][, who turns seventy on Sunday|, and the party is on Saturday|].|I have been [a customer|buying from you] [since you opened|for six years|for longer than I can say] and [never had reason to complain|usually everything goes smoothly].|[We live on a small island|Our village is far from any shop|I am not very mobile], so [going to a store|simply buying another] is [not an option|no easy matter].|[English is not my first language|I am writing this on my phone|I type with a bandaged thumb], so [please excuse the mistakes|forgive the odd phrase|sorry for the typos].|[The reviews praised your service|A colleague recommended you|My book club swears by your shop], [so I am hopeful|which is why I chose you].|[From the [twelfth|twentieth] on we are travelling|I leave for the mountains on the [ninth|sixteenth]], so [a quick word would help|after that nobody is at home].|[The cat|Our dog|The baby] [[has claimed the carton|sleeps in the wrapping paper][ 😺| 😀|], [but I am less relaxed|and somebody has to be happy]|has no opinion on this[ 😀|], but I do].|At the café where I work [everyone|half the staff] [asks how this ends|asks for news|wants to know more] – très [embarrassing|amusing].|[Money is tight this month|As a student I count every coin|I had saved for it], so [this matters to me|you can imagine my mood].|I [run|keep] a small [guesthouse|pottery|piano school], [and guests notice such things|where every day counts|so I need things in order].]
remark: [[I already tried the chat|I asked in the chat first], [but it sent me in circles|where a robot called Pip thanked me four times|and waited half an hour in vain].|[Someone wrote|A yellow sticker said] '[取扱注意|ご注意|שביר|قابل للكسر]' [on the paperwork|next to my name], which [I cannot read|a friend had to translate|puzzled me].|[I attach two pictures|Two photos are attached|A screenshot is attached][, sorry for the poor light|, taken this morning|].|[I know that you are busy|It must be a busy season|I can imagine the pile on your desk], [but a line would be kind|still I need an answer].|Naïve as I am, I [thought|believed] [this would take five minutes|it would sort itself out|shopping online was the easy way].|[Your colleague|Someone at your end] called me 'Señor [Ibáñol|Tortuño]', which [made my day|made my wife laugh] [🙂|😂|and is not my name].|[To be fair|In fairness], [the driver was polite|your site is easy to use|earlier orders were perfect], [so I keep calm|and I wanted to say so].|[My husband|My flatmate|My mother] [says I worry too much|told me to let it go|would have phoned you on day one], [but here I am|and perhaps rightly so].]
layouts: [order told aside ask|aside order told ask close|order aside told ask|open order told remark ask|order told ask remark close|open order told ask aside|order remark told aside ask|open aside order told ask close]
names: [Tavi|Orlin|Bexa|Mirelo|Zofka|Ilvar|Sennet|Noéma|Åselle|Jorvi|Quilla|Emrik|Pernu|Wandro|Fiorel|Dastin|Ruvena|Halko|Kelwin|Marisko|Tindro|Obelin|Çelmo|Lúthe|Vesk|Yorune]
models: [Ostrel|Plimba|Vornet|Tambrel|Quindle|Murvo|Jespa|Brombel|Kelpow|Dorrimo|Fennock|Yarbin|Zuvelle|Crålo|Nimbrey|Töffen]
home: [bookshelf|plant stand|shoe rack|picture frame|bread box|folding chair|wall mirror|spice rack|side table|coat stand|garden bench|storage trunk|tool cabinet]
electric: [kettle|desk lamp|toaster|bedside clock|hand blender|heated blanket|kitchen radio|label printer|bike light|milk frother|table fan|coffee grinder]
clothes: [rain jacket|wool cardigan|linen shirt|winter coat|dressing gown|hiking fleece|knitted pullover|silk blouse|cotton tunic|flannel shirt|sailor jumper]
numbers: [WS-{n}|#{n}|LK{n}|{n}/26]
days: [{d} [January|February|March|April|May|June|July|August|September|October|November|December]|[January|February|March|April|May|June|July|August|September|October|November|December] {d}]
prices: [€{a}|{a} €|£{a}|${a}|CHF {a}|{a} PLN|2{a} kr]
log: [Tote|Crate|Pallet|Trolley|Box] [3|7|12|18|25|31|44|58|63|79] [moved|was moved|rolled|went] from [lane|gate|bay|shelf] [1|2|4|5|6|8|9] to the [scanner|scale|lift|wrapper|sorter], [weight|seal|label|barcode] [checked|unread|accepted|rejected][, retry [1|2|3]|, queue of [2|5|8]|].
warm: [Hello|Hi|Dear team|Good morning|Hello everybody|Dear help desk|Good evening], // [I hope you are having a [calm|good] [day|week].|[A small|An odd] thing [happened|came up] [today|this week].|[First of all|Before anything else], [your shop is a find|I like your shop].] // [[Thank you|Many thanks] [in advance|for looking into it|for your help][!| 🙂|.]|[No hurry|Take your time], [but a short answer would be [nice|kind]|I know how it is].|[Have a lovely [day|evening].|Greetings from a rainy [coast|hill|garden].]] // [Best wishes|Kind regards|Warmly|All the best|Cheers], {name}
cross: [To whom it may concern|Help desk|Hello|To the manager|Good day], // [I am [rather|quite|very] [disappointed|annoyed|displeased].|This is [the second|my third] [attempt|message] [to reach you|about this].|[I rarely complain|I am a patient person], but [enough is enough|now I have to|this is too much].] // [I expect [an answer|a solution|a reply] [within two days|by tomorrow|this week].|[Otherwise|If not,] [I will shop elsewhere|the review will not be kind|you lose a customer].|[Please do not|Do NOT] send me [another form|a standard text|to the chat again].] // [Regards|Waiting|Not amused|Sincerely], {name}
brief: [Hi|Hello|Hey|Quick one|Hi there], // [I will be short.|[Quick|One] question.|[Need|I need] [a hand|some help] [here|please].] // [Thanks[!| 👍|.]|[Let me know|Tell me][, thanks|].|[That is all|Nothing else][, really|].|[Cheers|Ta].] // [Thx|Bye|Best|–] {name}
swaps: but=yet yet=still so=thus only=merely soon=shortly please=kindly again=anew my=our your=the never=hardly very=quite quite=rather rather=fairly sadly=alas annoyed=irritated forgive=excuse odd=strange kind=nice lost=mislaid box=carton carton=box error=fault fault=error page=site found=discovered noticed=spotted bought=purchased ordered=requested nothing=naught now=currently although=though because=since would=could whole=full lovely=gorgeous wonderful=marvellous tried=tested told=informed small=little short=brief answer=response help=assistance believed=assumed thought=figured perfect=flawless parcel=package hoping=aiming chose=picked quick=speedy attached=enclosed missing=absent shop=store
""".strip().splitlines()

PARTS = dict(line.split(": ", 1) for line in GRAMMAR)

SWAPS = dict(pair.split("=") for pair in PARTS["swaps"].split())  # one word for another, for near-duplicates

SWAP = re.compile(rf"\b({'|'.join(SWAPS)})\b")

CHANGES: dict[str, Callable[[str], str]] = {
    "no change": str,
    "capitals": str.upper,
    "whitespace": lambda text: "  " + text.replace(" ", "  ").replace("\n", " \n\t"),
    "zero-width characters": lambda text: "\ufeff" + text.replace(" ", " \u200b", 9).replace("th", "t\u200bh", 1),
    "Unicode form": lambda text: unicodedata.normalize("NFD", text).replace("1", "１").replace("2", "２"),
}

# Kind, how, how many, range of Jaccard, why: rows made from a clean row.
COPIES = (
    ("exact-duplicate", "no change", 4, SAME, "The original, byte for byte."),
    *(("exact-duplicate", how, 2, SAME, f"The original up to {how}.") for how in list(CHANGES)[1:]),
    ("near-duplicate", "swapped words", 18, NEAR, "The original with one to three words swapped."),
    ("look-alike", "another case", 6, LOOK_ALIKE, "Worded like the original, but another customer's case: keep it."),
    ("leak-exact", "no change", 2, SAME, "The test row is this training row, byte for byte."),
    ("leak-near", "swapped words", 1, NEAR, "The test row is this training row with one to three words swapped."),
)

# Kind; why; spoilt field; what stands there, `||` between several.
TABLE = """
outlier; An answer of about 3,000 words: somebody pasted a log.; output; {log}
outlier; A prompt of about 2,500 words: somebody forwarded a whole thread.; input; {thread}
pii; An e-mail address in the mail.; input; {input}{line}PS: I read tavi.orlin@example.com more often than this inbox.
pii; An e-mail address in the answer.; output; {output} Our colleague answers directly under zofka.ilvar@example.org until Friday.
pii; A phone number in the mail.; input; {input}{line}PS: Call me on +44 20 7946 0958 after six if that is easier.
pii; A phone number in the answer.; output; {output} You can also ring us on (212) 555-0143 during the day.
pii; A card number in the mail.; input; {input}{line}PS: If it helps, I paid with card 4111 1111 1111 1111. || {input}{line}PS: The card that you charged is 5555-5555-5555-4444, valid until next year.
pii; An API key in the mail.; input; {input}{line}PS: Your shop widget printed sk-EXAMPLE0not0a0real0key0000 into my browser window. || {input}{line}PS: My stock script signs in with AKIAIOSFODNN7EXAMPLE, in case you look at the log.
pii; An IBAN in the mail.; input; {input}{line}PS: Money can go to my account GB82 WEST 1234 5698 7654 32, as always.
decoy; An order number of 16 digits that fails the Luhn check: keep it.; input; {input}{line}PS: The long number on the slip is 4929 1834 0072 5163.
decoy; A version number, no IP address: keep it.; input; {input}{line}PS: The sticker underneath says revision 10.24.118.7, should that matter.
decoy; A date printed like an IP address: keep it.; input; {input}{line}PS: The stamp on the seal reads 14.03.20.26, so it was packed in March.
low-quality; The answer repeats the mail.; output; {input}
low-quality; A refusal.; output; As an AI language model, I cannot access orders or parcels, so I am unable to help with this request. || I'm sorry, but as an AI language model I do not have the ability to reply to customers.
low-quality; Placeholders that nobody filled in.; output; Dear [insert name], thank you for your message about order [order number]. We will get back to you soon. || {output} Your contact for this case is {{{{agent_name}}}}, [insert team].
low-quality; Mojibake: UTF-8 read as Windows-1252.; output; {output} Until then, donâ€™t hesitate to visit our CafÃ© CrÃ¨me corner â€“ the first cup is free.
low-quality; One sentence in a loop.; output; {loop}
low-quality; HTML leftovers.; output; <div class="mail"><p>{output}</p><br/>&nbsp;</div> || {output} <a href="#top">Back to ticket</a>&nbsp;&raquo; <span style="color:red">internal</span>
low-quality; Cut off within a sentence.; output; {half}
short-answer; One word.; output; ok || Yes || done. || No || Sure || yes! || Fine || OK. || Thanks || Noted
""".strip().splitlines()

SPOILT = [(*cells[:3], text) for cells in (line.split("; ", 3) for line in TABLE) for text in cells[3].split(" || ")]

dump = partial(json.dumps, ensure_ascii=False)


@dataclass(frozen=True)
class Messy:
    """Both files as raw lines, since not all parse, and the defects by line."""

    lines: tuple[str, ...]
    test: tuple[str, ...]
    defects: tuple[Defect, ...]


def shingles(row: Row, answer: bool = True) -> frozenset[str]:
    """All runs of five words in prompt plus answer, or in the prompt alone."""
    text = f"{row['instruction']}\n\n{row['input']}" + (f"\n{row['output']}" if answer else "")
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return frozenset(" ".join(words[i : i + 5]) for i in range(len(words) - 4))


def within(bounds: tuple[float, float], a: Row, b: Row) -> bool:
    """Whether the Jaccard index of two rows lies in a range, by their prompts and by prompt plus answer."""
    pairs = [(shingles(a, answer), shingles(b, answer)) for answer in (True, False)]
    return all(bounds[0] <= len(one & other) / len(one | other) <= bounds[1] for one, other in pairs)


def say(rng: Random, text: str, facts: Row) -> str:
    """Fill in the slots, then settle each `[this|that]`, innermost first."""
    while "{" in text:
        text = text.format(**facts)
    while choice := re.search(r"\[([^\[\]]*)\]", text):
        text = text[: choice.start()] + rng.choice(choice[1].split("|")) + text[choice.end() :]
    return text


def draw_facts(rng: Random) -> Row:
    """Draw a customer's case; gist, wish and the like stay open, to be worded anew at each use."""
    place = rng.randrange(0, len(PROBLEMS), 2)
    things, team, job, details, gist, *wishes = PROBLEMS[place].split(" // ")
    wish, action = rng.choice(wishes).split(" => ")
    facts = {"team": team, "job": job, "gist": gist, "told": PROBLEMS[place + 1], "wish": wish, "action": action}
    settled = {"thing": things, "detail": f"[{details}]", "name": "{names}", "model": "{models}"}
    settled |= {"order": "{numbers}", "day": "{days}", "price": "{prices}"}
    raw = PARTS | {"n": str(rng.randrange(100_000, 1_000_000)), "d": str(rng.randrange(1, 29))}
    raw["a"] = f"{rng.randrange(9, 290)}.{rng.choice(('00', '50', '90', '95'))}"
    facts |= {name: say(rng, text, raw) for name, text in settled.items()}
    return facts | {"product": "{model} {thing}", "line": "\n"}


def write_row(task: str, seed: int, changed: Row | None = None) -> Row:
    """Draw a case and word it; the same seed words it alike with some facts changed."""
    rng = Random(seed)
    facts = draw_facts(rng) | (changed or {})
    hello, opening, closing, bye = PARTS[rng.choice(("warm", "cross", "brief"))].split(" // ")
    parts = PARTS | {"told": facts["told"], "open": opening, "close": closing}
    body = [say(rng, parts[name], facts) for name in say(rng, PARTS["layouts"], facts).split()]
    text = " ".join(sentence[0].upper() + sentence[1:] for sentence in body)
    letter = rng.choice(("\n", "\n\n", " ")).join((say(rng, hello, facts), text, say(rng, bye, facts)))
    ask, answer = (say(rng, part, facts) for part in PARTS[task].split(" // "))
    return {"instruction": ask, "input": letter, "output": answer[0].upper() + answer[1:], "task": task}


def draw_rows(rng: Random, tasks: list[str]) -> list[tuple[int, Row]]:
    """Draw a clean row of fitting length for each task, with its seed."""
    drawn: list[tuple[int, Row]] = []
    while len(drawn) < len(tasks):
        seed = rng.randrange(2**32)
        row = write_row(tasks[len(drawn)], seed)
        if 55 <= len(row["input"].split()) <= 110 and 12 <= len(row["output"].split()) <= 70:
            drawn.append((seed, row))
    return drawn


def remake(rng: Random, how: str, seed: int, row: Row) -> Row:
    """Make another row from a clean one; `how` is the second column of `COPIES`."""
    if how == "another case":
        fresh, others = draw_facts(rng), rng.sample(("day", "price", "model"), rng.randrange(4))
        return write_row(row["task"], seed, {name: fresh[name] for name in ("name", "order", *others)})
    if how == "swapped words":
        spots = [match.start() for match in SWAP.finditer(row["input"])] or [0]
        first = rng.randrange(len(spots))
        chosen = spots[first : first + min(1 + seed % 8, 3)]  # three seldom stay near, so they are tried most
        swapped = SWAP.sub(lambda word: SWAPS[word[0]] if word.start() in chosen else word[0], row["input"])
        return row | {"input": swapped}
    return row | {field: CHANGES[how](row[field]) for field in ("input", "output")}


def related(rng: Random, clean: list[tuple[int, Row]]) -> list[tuple[str, Defect]]:
    """Remake clean rows, each at most once, into what `COPIES` lists; `original` counts them from 0."""
    made: list[tuple[str, Defect]] = []
    origins = iter(rng.sample(range(len(clean)), len(clean)))
    for kind, how, count, bounds, why in COPIES:
        wanted = len(made) + count
        while len(made) < wanted:
            origin = next(origins)
            tries = (remake(rng, how, *clean[origin]) for _ in range(20))
            copy = next((row for row in tries if within(bounds, clean[origin][1], row)), None)
            made += [(dump(copy), {"kind": kind, "original": origin, "why": why})] if copy else []
    return made


def spoiled(rng: Random, rows: list[Row]) -> list[tuple[str, Defect]]:
    """Spoil a row for each text in `SPOILT`, then break the last three."""
    pasted = {"log": "\n".join(say(rng, PARTS["log"], {}) for _ in range(235)), "line": "\n"}
    pasted["thread"] = "\n\n".join(write_row("reply", rng.randrange(2**32))["input"] for _ in range(32))
    made: dict[str, tuple[str, str]] = {}
    for row, (kind, why, field, text) in zip(rows, SPOILT, strict=False):
        half = row["output"][: len(row["output"]) // 2].rpartition(" ")[0]
        loop = " ".join([row["output"].partition(". ")[0] + "."] * 6)
        made[dump(row | {field: text.format(**row, **pasted, half=half, loop=loop)})] = (kind, why)
    torn, null, bare = (dump(row) for row in rows[-3:])
    made[torn[: len(torn) // 2]] = ("broken", "The JSON ends within a string.")
    made[re.sub(r'"output": ".*", ', '"output": null, ', null)] = ("broken", "The output is null.")
    made[re.sub(r'"output": ".*", ', "", bare)] = ("broken", "There is no output.")
    return [(line, {"kind": kind, "original": None, "why": why}) for line, (kind, why) in made.items()]


def listed(train: list[tuple[str, Defect]], test: list[tuple[str, Defect]], order: list[int]) -> tuple[Defect, ...]:
    """Give the defects their line numbers, from 1; a leak's `line` is the training row."""
    replies = sum('"task": "reply"' in line for line, _ in train)
    share = {"task": "reply", "count": replies, "share": round(replies / len(train), 3)}
    why = "One task has more lines than all others together."
    found: list[Defect] = [{"kind": "imbalance", "why": why, **share}]
    line_of: dict[int | None, int] = {entry: line for line, entry in enumerate(order, 1)}
    for line, (_, defect) in enumerate(train, 1):
        if defect:
            found.append({"line": line, **defect, "original": line_of.get(defect["original"])})
    for line, (_, defect) in enumerate(test, 1):
        if defect:
            found.append({"line": line_of[defect["original"]], **defect, "original": None, "test_line": line})
    blank = {"line": None, "kind": None, "original": None, "test_line": None}
    return tuple({**blank, "keep": defect["kind"] in ("look-alike", "decoy"), **defect} for defect in found)


def generate(seed: int = 0) -> Messy:
    """Generate training lines, test rows and the list of defects; the same seed gives the same."""
    rng = Random(seed)
    tasks = [task for task, count in CLEAN.items() for _ in range(count)] + ["reply"] * SURPLUS
    mixed = ("input", "short-answer")
    spare = [list(CLEAN)[n % 4] if {*cells} & {*mixed} else "reply" for n, cells in enumerate(SPOILT)]
    drawn = draw_rows(rng, [*tasks, *spare, *list(CLEAN)[:3], *TEST * list(CLEAN)])
    lines, first = [(dump(row), Defect()) for _, row in drawn], -TEST * len(CLEAN)
    made = related(rng, drawn[: len(tasks)])
    train = lines[: len(tasks)] + [pair for pair in made if "leak" not in pair[1]["kind"]]
    train += spoiled(rng, [row for _, row in drawn[len(tasks) : first]])
    test = lines[first:] + [pair for pair in made if "leak" in pair[1]["kind"]]
    order = rng.sample(range(len(train)), len(train))
    train = [train[entry] for entry in order]
    rng.shuffle(test)
    return Messy(tuple(line for line, _ in train), tuple(line for line, _ in test), listed(train, test, order))


def write(folder: Path, seed: int = 0) -> None:
    """Write `messy.jsonl`, `messy_test.jsonl` and `messy_defects.json`, in UTF-8 with Unix line ends."""
    messy = generate(seed)
    head = dump({"about": ABOUT, "jaccard": JACCARD, "seed": seed, "counts": Counter(d["kind"] for d in messy.defects)})
    defects = [head[:-1] + ', "defects": [', ",\n".join(map(dump, messy.defects)), "]}"]
    names = ("messy.jsonl", "messy_test.jsonl", "messy_defects.json")
    for name, lines in zip(names, (messy.lines, messy.test, defects), strict=True):
        (folder / name).write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(__file__).parents[1] / "ftkit/samples")
