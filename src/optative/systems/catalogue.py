"""The published systems: all 77, literal. A system without a module is `missing`.

Knows: numbers, names, titles, citations, and in one sentence of ours what each publication claims. Does not know: what
was measured here (`status` does). Adding a system: write its module, then name it here.
"""

from __future__ import annotations

from optative.core.errors import InputError, nearest
from optative.systems.record import Entry

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        1,
        "diffusion-overview",
        title="An Overview of Diffusion Models: Applications, Guided Generation, Statistical Rates and Optimization",
        citation="arXiv:2404.07771",
        claim="Guiding a diffusion model trades diversity for confidence, and steering it towards a target "
        "reward works until the target leaves the data.",
        module=None,
    ),
    Entry(
        2,
        "metadata-conditioning",
        title="Metadata Conditioning Accelerates Language Model Pre-training (MeCo)",
        citation="arXiv:2501.01956",
        claim="Showing a document's source during most of pretraining, and hiding it at the end, reaches the "
        "same average score with a third less data.",
        module="optative.systems.metadata_conditioning",
    ),
    Entry(
        3,
        "diffusion-nag",
        title="DiffusionNAG: Predictor-guided Neural Architecture Generation with Diffusion Models",
        citation="arXiv:2305.16943",
        claim="A diffusion model over architectures, guided by a property predictor, finds good networks "
        "while training up to 35 times fewer of them.",
        module=None,
    ),
    Entry(
        4,
        "lowcode-workflow-generation",
        title="Generating a Low-code Complete Workflow via Task Decomposition and RAG",
        citation="arXiv:2412.00239",
        claim="Splitting workflow generation into an outline and its inputs, each with retrieved names, gives "
        "complete workflows with few invented steps or tables.",
        module=None,
    ),
    Entry(
        5,
        "basalt",
        title="The MineRL BASALT Competition on Learning from Human Feedback",
        citation="arXiv:2107.01969",
        claim="Agents for tasks that only a paragraph describes can be trained from human feedback and ranked "
        "by paired human judgements; none yet reaches people.",
        module=None,
    ),
    Entry(
        6,
        "webarena",
        title="WebArena: A Realistic Web Environment for Building Autonomous Agents",
        citation="arXiv:2307.13854",
        claim="On realistic web sites judged by their resulting state, the best GPT-4 agent completes about "
        "14 % of the tasks and people about 78 %.",
        module=None,
    ),
    Entry(
        7,
        "omni-interestingness",
        title="OMNI: Open-endedness via Models of human Notions of Interestingness",
        citation="arXiv:2306.01711",
        claim="Choosing tasks by learning progress and by what a language model finds interesting masters "
        "about half again as many tasks as learning progress alone.",
        module=None,
    ),
    Entry(
        8,
        "lma3-autotelic",
        title="Augmenting Autotelic Agents with Large Language Models (LMA3)",
        citation="arXiv:2305.12487",
        claim="An agent whose goals a language model names, composes and judges learns a growing repertoire "
        "without hand-written goals or rewards.",
        module=None,
    ),
    Entry(
        9,
        "coat-object-affordance",
        title="Physical Reasoning and Object Planning for Household Embodied Agents (COAT)",
        citation="arXiv:2311.13577",
        claim="Language models know which objects serve a purpose, but lose accuracy once the context and the "
        "physical state of the objects count.",
        module=None,
    ),
    Entry(
        10,
        "taskmatrix",
        title="TaskMatrix.AI: Completing Tasks by Connecting Foundation Models with Millions of APIs",
        citation="arXiv:2303.16434",
        claim="A foundation model can complete tasks by picking and composing functions from a large, "
        "documented and growing platform of APIs.",
        module=None,
    ),
    Entry(
        11,
        "sasha-smart-home",
        title="Sasha: Creative Goal-Oriented Reasoning in Smart Homes with Large Language Models",
        citation="arXiv:2305.09802",
        claim="Filtering devices, planning and checking in stages lets a language model serve vague "
        "smart-home goals with fewer irrelevant actions and lasting routines.",
        module=None,
    ),
    Entry(
        12,
        "mcts-dpo",
        title="Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning (MCTS-DPO)",
        citation="arXiv:2405.00451",
        claim="Step-level preferences from tree search, renewed online, raise a 7B model from 75.9 to 81.8 on "
        "GSM8K and beat answer-level and offline preferences.",
        module=None,
    ),
    Entry(
        13,
        "beyond-preferences",
        title="Beyond Preferences in AI Alignment",
        citation="arXiv:2408.16984",
        claim="One scalar reward cannot stand for incommensurable values; standards tied to a role, agreed by "
        "those affected, can serve where aggregated preferences fail.",
        module=None,
    ),
    Entry(
        14,
        "words-to-routes",
        title="From Words to Routes: Applying Large Language Models to Vehicle Routing",
        citation="arXiv:2403.10795",
        claim="A language model that writes code solves worded routing problems, and running, repairing and "
        "checking the code raises feasibility by 16 points.",
        module=None,
    ),
    Entry(
        15,
        "ibcl",
        title="IBCL: Zero-shot Model Generation for Task Trade-offs in Continual Learning",
        citation="arXiv:2310.02995",
        claim="Convex combinations of a few posteriors give a model for any trade-off between tasks without "
        "training, with up to 23 points higher average accuracy.",
        module=None,
    ),
    Entry(
        16,
        "unpacking-dpo-ppo",
        title="Unpacking DPO and PPO: Disentangling Best Practices for Learning from Preference Feedback",
        citation="arXiv:2406.09279",
        claim="In preference learning the data matter most, then PPO over DPO, then the reward model; larger "
        "reward models help mathematics and little else.",
        module="optative.systems.unpacking_dpo_ppo",
    ),
    Entry(
        17,
        "objective-formalisms",
        title="On The Expressivity of Objective-Specification Formalisms in Reinforcement Learning",
        citation="arXiv:2310.11840",
        claim="Seventeen ways of stating an objective form a strict order of expressivity in which five of "
        "the strongest cannot replace one another.",
        module=None,
    ),
    Entry(
        18,
        "domain-knowledge-reward",
        title="Leveraging Domain Knowledge for Efficient Reward Modelling in RLHF: A Case-Study in E-Commerce "
        "Opinion Summarization",
        citation="arXiv:2402.15473",
        claim="A reward built from a few domain features needs only 940 human comparisons and still beats "
        "DPO, supervised and synthetic-only training.",
        module=None,
    ),
    Entry(
        19,
        "promst-prompt-optimization",
        title="PRompt Optimization in Multi-Step Tasks (PROMST): Integrating Human Feedback and "
        "Heuristic-based Sampling",
        citation="arXiv:2402.08702",
        claim="Searching prompts with written feedback rules and a learned score predictor improves "
        "multi-step tasks by 10.6 to 29.3 % over the best other method.",
        module=None,
    ),
    Entry(
        20,
        "context-aware-preference",
        title="Improving Context-Aware Preference Modeling for Language Models (CAPM, RPR datasets, CARM)",
        citation="arXiv:2407.14916",
        claim="Reward models that are trained on pairs whose preference flips with the stated context use "
        "that context better than much larger models do.",
        module=None,
    ),
    Entry(
        21,
        "reward-transform-combine",
        title="Transforming and Combining Rewards for Aligning Large Language Models (LSC transform)",
        citation="arXiv:2402.00742",
        claim="Transforming rewards by log-sigmoid around a reference before summing gives better aligned "
        "models at equal KL than raw or weighted sums.",
        module=None,
    ),
    Entry(
        22,
        "followup-likelihood",
        title="Aligning Language Models Using Follow-up Likelihood as Reward Signal (FLR)",
        citation="arXiv:2409.13948",
        claim="How likely a model finds a satisfied follow-up to an answer works as a reward and matches "
        "reward models trained on large preference sets.",
        module=None,
    ),
    Entry(
        23,
        "omniact",
        title="OmniACT: A Dataset and Benchmark for Enabling Multimodal Generalist Autonomous Agents for "
        "Desktop and Web",
        citation="arXiv:2402.17553",
        claim="The best model writes working desktop and web scripts at about 15 % of human proficiency.",
        module=None,
    ),
    Entry(
        24,
        "hybrid-preference-routing",
        title="Hybrid Preferences: Learning to Route Instances for Human vs. AI Feedback (HyPER, MultiPref)",
        citation="arXiv:2410.19133",
        claim="Sending to people only the comparisons where they help most beats labelling everything by "
        "people or by a model, by 7 to 13 % relative.",
        module=None,
    ),
    Entry(
        25,
        "open-ended-learning",
        title="Open-Ended Learning Leads to Generally Capable Agents (XLand)",
        citation="arXiv:2107.12808",
        claim="Generating tasks at the edge of ability, over generations of agents, yields agents that take "
        "part in every humanly solvable held-out task.",
        module=None,
    ),
    Entry(
        26,
        "constrained-rlhf",
        title="Confronting Reward Model Overoptimization with Constrained RLHF",
        citation="arXiv:2310.04373",
        claim="Learned constraints that hold each reward at the point where it stops being a good proxy keep "
        "the true score from falling after its peak.",
        module=None,
    ),
    Entry(
        27,
        "anytasktune",
        title="AnyTaskTune: Advanced Domain-Specific Solutions through Task-Fine-Tuning",
        citation="arXiv:2407.07094",
        claim="Small models fine-tuned on explicit task data beat more capable general models on those tasks.",
        module=None,
    ),
    Entry(
        28,
        "proto-value-networks",
        title="Proto-Value Networks: Scaling Representation Learning with Auxiliary Tasks",
        citation="arXiv:2304.12567",
        claim="Features learned from very many auxiliary value functions let a linear policy play Atari as "
        "well as agents trained far longer, and improve with width.",
        module=None,
    ),
    Entry(
        29,
        "deps-planning",
        title="Describe, Explain, Plan and Select: Interactive Planning with Large Language Models Enables "
        "Open-World Multi-Task Agents (DEPS)",
        citation="arXiv:2302.01560",
        claim="Describing failures, explaining them, replanning and picking the nearest subgoal nearly "
        "doubles success on Minecraft tasks.",
        module=None,
    ),
    Entry(
        30,
        "self-supervised-prompt-optimization",
        title="Self-Supervised Prompt Optimization (SPO)",
        citation="arXiv:2502.06855",
        claim="Comparing outputs pairwise, without references, finds prompts as good as the best search "
        "methods at 1.1 to 5.6 % of their cost.",
        module=None,
    ),
    Entry(
        31,
        "oakink2",
        title="OAKINK2: A Dataset of Bimanual Hands-Object Manipulation in Complex Task Completion",
        citation="arXiv:2403.19417",
        claim="Long two-handed manipulation split into primitives with object affordances supports task-aware "
        "motion generation, which refinement makes more physical.",
        module=None,
    ),
    Entry(
        32,
        "responsible-task-automation",
        title="Responsible Task Automation: Empowering Large Language Models as Responsible Task Automators "
        "(ResponsibleTA)",
        citation="arXiv:2306.01242",
        claim="Checking feasibility before and completeness after each step lifts an automator from 3 to 10 "
        "of twelve real tasks, best with a small domain model.",
        module=None,
    ),
    Entry(
        33,
        "grif-goal-representations",
        title="Goal Representations for Instruction Following: A Semi-Supervised Language Interface to Control (GRIF)",
        citation="arXiv:2307.00117",
        claim="Aligning instructions with the change from start to goal image lets few labelled trajectories "
        "ground language for robot control.",
        module=None,
    ),
    Entry(
        34,
        "consciousness-prior",
        title="The Consciousness Prior",
        citation="arXiv:1709.08568",
        claim="A bottleneck that lets only a few abstract variables into each statement helps to separate "
        "factors and to adapt when few of them change.",
        module=None,
    ),
    Entry(
        35,
        "dynamic-normativity",
        title="Dynamic Normativity: Necessary and Sufficient Conditions for Value Alignment",
        citation="arXiv:2406.11039",
        claim="An alignment process whose paradigm misses necessary conditions must fail; the small models "
        "built by it gain on truthfulness and toxicity.",
        module=None,
    ),
    Entry(
        36,
        "on-policy-suboptimal",
        title="Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data",
        citation="arXiv:2404.14367",
        claim="On-policy sampling and losses that push bad answers down help most where good answers are "
        "unlikely under the reference, and they add up.",
        module="optative.systems.on_policy_data",
    ),
    Entry(
        37,
        "dobb-e",
        title="On Bringing Robots Home (Dobb-E)",
        citation="arXiv:2311.16098",
        claim="Five minutes of demonstrations on a pretrained visual encoder teach a home robot a new task, "
        "with 81 % success over 109 tasks in 10 homes.",
        module=None,
    ),
    Entry(
        38,
        "armap-auto-reward-planning",
        title="Scaling Autonomous Agents via Automatic Reward Modeling And Planning (ARMAP)",
        citation="arXiv:2502.12130",
        claim="A reward model learned from trajectories that models generated and judged improves every "
        "tested agent through tree search and best-of-n.",
        module=None,
    ),
    Entry(
        39,
        "llmfp-formalized-planning",
        title="Planning Anything with Rigor: General-Purpose Zero-Shot Planning with LLM-based Formalized "
        "Programming (LLMFP)",
        citation="arXiv:2410.12112",
        claim="Turning worded planning problems into formal programs and solving these reaches 83.7 % optimal "
        "plans, far above asking a strong model directly.",
        module=None,
    ),
    Entry(
        40,
        "smartagent-user-thought",
        title="SmartAgent: Chain-of-User-Thought for Embodied Personalized Agent in Cyber World",
        citation="arXiv:2412.07472",
        claim="Reasoning from screen operations through stated needs to implicit needs lets one screen agent "
        "both operate and recommend.",
        module=None,
    ),
    Entry(
        41,
        "mcd-design-counterfactuals",
        title="Counterfactuals for Design: A Model-Agnostic Method For Design Recommendations (MCD)",
        citation="arXiv:2305.11308",
        claim="Evolutionary search for counterfactuals finds diverse, close and valid design changes that "
        "meet several targets with any predictor.",
        module=None,
    ),
    Entry(
        42,
        "drakes-discrete-diffusion",
        title="Fine-Tuning Discrete Diffusion Models via Reward Optimization with Applications to DNA and "
        "Protein Design (DRAKES)",
        citation="arXiv:2410.13643",
        claim="Backpropagating a reward through discrete diffusion with a KL leash gives DNA of higher "
        "activity that stays natural, beyond guidance and resampling.",
        module=None,
    ),
    Entry(
        43,
        "rl-zero",
        title="RL Zero: Zero-Shot Language to Behaviors without any Supervision",
        citation="arXiv:2412.05718",
        claim="Imagining a behaviour from text and projecting it onto a pretrained behaviour model gives "
        "policies in seconds without supervision.",
        module=None,
    ),
    Entry(
        44,
        "theagentcompany",
        title="TheAgentCompany: Benchmarking LLM Agents on Consequential Real World Tasks",
        citation="arXiv:2412.14161",
        claim="In a simulated company the best agent completes 24 % of consequential office tasks and does "
        "worst where people must be asked.",
        module=None,
    ),
    Entry(
        45,
        "preference-degree",
        title="Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree "
        "Awareness (SPO)",
        citation="arXiv:2409.17791",
        claim="Learning to tell how strongly an answer was degraded, beside the preference loss, raises win "
        "rates over that loss alone.",
        module="optative.systems.preference_degree",
    ),
    Entry(
        46,
        "cogeval",
        title="Evaluating Cognitive Maps and Planning in Large Language Models with CogEval",
        citation="arXiv:2309.15129",
        claim="Language models plan on simple graphs only; on cognitive maps with richer structure they fail "
        "in systematic ways.",
        module=None,
    ),
    Entry(
        47,
        "meet-control-tokens",
        title="Parameter-Efficient Tuning Helps Language Model Alignment (MEET)",
        citation="arXiv:2310.00819",
        claim="Tuning a soft prompt or an adapter as the control token for good and bad answers aligns better "
        "than control sentences in words.",
        module="optative.systems.control_tokens",
    ),
    Entry(
        48,
        "oni-online-intrinsic-rewards",
        title="Online Intrinsic Rewards for Decision Making Agents from Large Language Model Feedback (ONI)",
        citation="arXiv:2410.23022",
        claim="Rewards distilled online from a language model's labels on a small share of observations match "
        "offline ones and need no data set.",
        module=None,
    ),
    Entry(
        49,
        "alignment-ceiling",
        title="The Alignment Ceiling: Objective Mismatch in Reinforcement Learning from Human Feedback",
        citation="arXiv:2311.00168",
        claim="A higher reward-model score need not mean a better model: the links from preferences to "
        "reward, policy and evaluation can each break.",
        module=None,
    ),
    Entry(
        50,
        "spar-self-play",
        title="SPaR: Self-Play with Tree-Search Refinement to Improve Instruction-Following in Large Language Models",
        citation="arXiv:2412.11605",
        claim="Self-play that refines failed answers by tree search, so that pairs differ only in what "
        "matters, raises instruction following round after round.",
        module=None,
    ),
    Entry(
        51,
        "preference-rankings",
        title="Preference Learning Algorithms Do Not Learn Preference Rankings",
        citation="arXiv:2405.19534",
        claim="Preference-tuned models rank fewer than 60 % of common preference pairs right, and DPO turns "
        "few of the wrong ones.",
        module="optative.systems.preference_rankings",
    ),
    Entry(
        52,
        "multimodal-diffusion-transformer",
        title="Multimodal Diffusion Transformer: Learning Versatile Behavior from Multimodal Goals (MDT)",
        citation="arXiv:2407.05996",
        claim="A diffusion transformer with two auxiliary losses learns from goals in words or images and "
        "beats larger models with few language labels.",
        module=None,
    ),
    Entry(
        53,
        "muscle-compatibility",
        title="MUSCLE: A Model Update Strategy for Compatible LLM Evolution",
        citation="arXiv:2407.09435",
        claim="Distilling from the old model where the new one is wrong cuts negative flips of a model update "
        "by up to 40 %.",
        module="optative.systems.compatible_updates",
    ),
    Entry(
        54,
        "moral-graph-elicitation",
        title="What are human values, and how do we align AI to them? (Moral Graph Elicitation, MGE)",
        citation="arXiv:2404.10636",
        claim="Asking people for values and for which value is wiser yields a moral graph in which 89 % feel "
        "well represented.",
        module=None,
    ),
    Entry(
        55,
        "heron-hierarchical-feedback",
        title="Deep Reinforcement Learning from Hierarchical Weak Preference Feedback (HERON)",
        citation="arXiv:2309.02632",
        claim="Comparing trajectories by a ranked list of weak signals replaces reward engineering and is "
        "more robust when the environment changes.",
        module=None,
    ),
    Entry(
        56,
        "mm-rlhf",
        title="MM-RLHF: The Next Step Forward in Multimodal LLM Alignment",
        citation="arXiv:2502.10391",
        claim="A critique-based reward model and a margin that scales the DPO pull improve multimodal models, "
        "safety most of all.",
        module=None,
    ),
    Entry(
        57,
        "sami-mutual-information",
        title="Self-Supervised Alignment with Mutual Information: Learning to Follow Principles without "
        "Preference Labels (SAMI)",
        citation="arXiv:2404.14313",
        claim="Raising the mutual information between principles and answers makes a base model follow "
        "principles without preference labels or examples.",
        module="optative.systems.mutual_information",
    ),
    Entry(
        58,
        "secrets-rlhf-reward-modeling",
        title="Secrets of RLHF in Large Language Models Part II: Reward Modeling",
        citation="arXiv:2401.06080",
        claim="Measuring preference strength with several reward models, then flipping, softening or spacing "
        "the labels by it, gives more stable alignment.",
        module=None,
    ),
    Entry(
        59,
        "helpsteer2-preference",
        title="HelpSteer2-Preference: Complementing Ratings with Preferences",
        citation="arXiv:2410.01257",
        claim="Ratings and preferences train equally good reward models on matched data and a better one "
        "together, with 94.1 on RewardBench.",
        module=None,
    ),
    Entry(
        60,
        "mbrl-objective-mismatch",
        title="Objective Mismatch in Model-based Reinforcement Learning",
        citation="arXiv:2002.04523",
        claim="A dynamics model's likelihood need not go with control performance, and weighting its data by "
        "nearness to the optimum helps with few samples.",
        module=None,
    ),
    Entry(
        61,
        "mmau",
        title="MMAU: A Holistic Benchmark of Agent Capabilities Across Diverse Domains",
        citation="arXiv:2407.18961",
        claim="Agents' capabilities are uneven: planning separates strong from weak models, and "
        "self-correction is the rarest.",
        module=None,
    ),
    Entry(
        62,
        "alignment-goals-survey",
        title="From Instructions to Intrinsic Human Values: A Survey of Alignment Goals for Big Models",
        citation="arXiv:2308.12014",
        claim="The goals of alignment move from instructions over preferences to values, and evaluation lags "
        "most at the level of values.",
        module=None,
    ),
    Entry(
        63,
        "step-level-q-value",
        title="Enhancing Decision-Making for LLM Agents via Step-Level Q-Value Models",
        citation="arXiv:2409.09345",
        claim="A small model of step-level values, learned from tree search, picks among an agent's proposed "
        "actions and doubles a small model's shopping score.",
        module=None,
    ),
    Entry(
        64,
        "p5-recommendation",
        title="Recommendation as Language Processing (RLP): A Unified Pretrain, Personalized Prompt & Predict "
        "Paradigm (P5)",
        citation="arXiv:2203.13366",
        claim="One text-to-text model trained on all recommendation tasks as sentences matches specialised "
        "recommenders and stands unseen wordings.",
        module=None,
    ),
    Entry(
        65,
        "mcu-minecraft-tasks",
        title="MCU: A Task-centric Framework for Open-ended Agent Evaluation in Minecraft",
        citation="arXiv:2310.08367",
        claim="Composing atom tasks and judging by facets covers open-ended evaluation, in which agents lack "
        "creativity and precise control.",
        module=None,
    ),
    Entry(
        66,
        "themis-tool-augmented-reward",
        title="Tool-Augmented Reward Modeling (Themis, TARA)",
        citation="arXiv:2310.01045",
        claim="Reward models that call tools and reason before scoring are 17.7 % better on average over "
        "eight tasks than those without tools.",
        module=None,
    ),
    Entry(
        67,
        "motif-feasibility",
        title="A Dataset for Interactive Vision-Language Navigation with Unknown Command Feasibility (MoTIF)",
        citation="arXiv:2202.02312",
        claim="Whether a command can be done in an app is predictable only in part (F1 of 61.1), and "
        "infeasible commands harm navigation.",
        module=None,
    ),
    Entry(
        68,
        "simpletom",
        title="SimpleToM: Exposing the Gap between Explicit ToM Inference and Implicit ToM Application in LLMs",
        citation="arXiv:2410.13648",
        claim="Models that state what a person knows still fail to predict or judge that person's behaviour: "
        "GPT-4o drops to 49.5 % and 15.3 %.",
        module=None,
    ),
    Entry(
        69,
        "regularized-relevance-reward",
        title="Preference-free Alignment Learning with Regularized Relevance Reward (R^3)",
        citation="arXiv:2402.03469",
        claim="A reward of relevance, guarded by length and repetition and routed by kind of query, aligns "
        "without preference labels and costs fewer skills.",
        module=None,
    ),
    Entry(
        70,
        "task-preference-optimization",
        title="Task Preference Optimization: Improving Multimodal Large Language Models with Vision Task "
        "Alignment (TPO)",
        citation="arXiv:2412.19326",
        claim="Backpropagating visual task losses through task tokens improves a multimodal model's general "
        "answers by 14.6 % and teaches it the tasks.",
        module=None,
    ),
    Entry(
        71,
        "automated-deep-learning",
        title="Automated Deep Learning: Neural Architecture Search Is Not the End",
        citation="arXiv:2112.09245",
        claim="Automated deep learning should be judged by ten criteria, not by accuracy alone; most work "
        "neglects stability, reproducibility and energy.",
        module=None,
    ),
    Entry(
        72,
        "big-bench",
        title="Beyond the Imitation Game: Quantifying and extrapolating the capabilities of language models "
        "(BIG-bench)",
        citation="arXiv:2206.04615",
        claim="Over 204 tasks performance and calibration improve with scale, some abilities break through "
        "suddenly, and all models stay below human raters.",
        module=None,
    ),
    Entry(
        73,
        "a2nav",
        title="A^2Nav: Action-Aware Zero-Shot Robot Navigation by Exploiting Vision-and-Language Ability of "
        "Foundation Models",
        citation="arXiv:2308.07997",
        claim="Splitting an instruction into actions with their own navigators follows routes zero-shot, with "
        "22.6 % success on R2R-Habitat.",
        module=None,
    ),
    Entry(
        74,
        "negotiation-self-play",
        title="Improving Language Model Negotiation with Self-Play and In-Context Learning from AI Feedback",
        citation="arXiv:2305.10142",
        claim="Strong models bargain better after self-play and coaching by another model; weak ones do not, "
        "and better prices cost deals.",
        module=None,
    ),
    Entry(
        75,
        "pearl-cross-task-preference",
        title="PEARL: Zero-shot Cross-task Preference Alignment and Robust Reward Learning for Robotic Manipulation",
        citation="arXiv:2306.03615",
        claim="Optimal transport carries preferences from one manipulation task to another, and a reward that "
        "models their uncertainty stands the noise.",
        module=None,
    ),
    Entry(
        76,
        "antgpt-action-anticipation",
        title="AntGPT: Can Large Language Models Help Long-term Action Anticipation from Videos?",
        citation="arXiv:2307.16368",
        claim="Language models over recognised actions anticipate long futures better than earlier methods, "
        "and a distilled small one matches its teacher.",
        module=None,
    ),
    Entry(
        77,
        "rl-for-generative-ai-survey",
        title="Reinforcement Learning for Generative AI: A Survey",
        citation="arXiv:2308.14328",
        claim="Reinforcement learning gives generative models signals that likelihood cannot carry; designing "
        "the reward is the main lever and the main hazard.",
        module=None,
    ),
)


def find(key: str) -> Entry:
    """The entry with this number ("26") or name ("constrained-rlhf")."""
    for entry in CATALOGUE:
        if key.strip().lstrip("0") == str(entry.number) or key in (entry.name, f"{entry.number:02d}-{entry.name}"):
            return entry
    close = nearest(key, (entry.name for entry in CATALOGUE))
    raise InputError(
        f"no system {key!r}" + (f"; the nearest is {close!r}" if close else ""),
        expected=f"a number from 1 to {len(CATALOGUE)} or a name",
        hint="`optative systems list` names them all.",
    )
